"""`sfd preset`: list, show, check and activate complete parameter sets."""

import argparse
from typing import Any

from sfd_core.cli.results import PARAMS
from sfd_core.experiment.inputs import in_words, missing_inputs
from sfd_core.experiment.presets import load_preset, preset_names, use_preset


def add_preset(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    command = commands.add_parser(
        "preset",
        help="list, show, check or activate a complete parameter set",
        description="Complete parameter sets of the folder presets: each reproduces a number of the paper or of this project.",
    )
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION")
    _add(actions, "list", _list)
    _add(actions, "show", _show).add_argument("name", metavar="NAME")
    _add(actions, "check", _check).add_argument("names", nargs="*", metavar="NAME", help="default: all")
    _add(actions, "use", _use).add_argument("name", metavar="NAME")


def _add(actions: Any, name: str, handler: Any) -> argparse.ArgumentParser:
    action: argparse.ArgumentParser = actions.add_parser(name, help=handler.__doc__, description=handler.__doc__)
    action.set_defaults(handler=handler)
    return action


def _list(_: argparse.Namespace) -> None:
    """Print every preset and what it reproduces."""
    names = preset_names()
    width = max(len(name) for name in names)
    for name in names:
        print(f"{name:<{width}}  {(load_preset(name).header.splitlines() or [''])[0]}")


def _show(arguments: argparse.Namespace) -> None:
    """Print the whole parameter file that a preset makes."""
    print(load_preset(arguments.name).text, end="")


def _check(arguments: argparse.Namespace) -> None:
    """Check presets without running or writing anything."""
    for name in arguments.names or preset_names():
        params = load_preset(name).check()
        print(f"{name}: valid, trains {', '.join(params.active)}")


def _use(arguments: argparse.Namespace) -> None:
    """Write a preset to params.yaml; `git diff params.yaml` shows what that changes."""
    preset = load_preset(arguments.name)
    use_preset(preset, PARAMS)
    print(f"{PARAMS} is now preset {arguments.name}; `git diff {PARAMS}` shows the difference, `make repro` runs it")
    missing = missing_inputs(preset.check())
    if missing:
        print(f"not there yet: {in_words(missing)}")
