"""`sfd experiment`: the pipeline beside the project with other values."""

import argparse
import json
from pathlib import Path
from typing import Any

from sfd_core.cli.results import PARAMS, print_results, write_curves, write_table
from sfd_core.experiment.params import load_params
from sfd_core.host.errors import ConfigError
from sfd_core.workspace.experiments import Axis, experiment_dir, plan_experiment, run_experiment


def add_experiment(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    command = commands.add_parser(
        "experiment", help="run the pipeline beside the project with other values", description=_experiment.__doc__
    )
    command.add_argument("name", metavar="NAME", help="its folder is .sfd/experiments/NAME")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="changes",
        help="a value as nested in params.yaml; may be repeated",
    )
    command.add_argument(
        "--vary", nargs="+", metavar="KEY VALUE", help="a value of the variants, such as seed, and all it shall take"
    )
    command.add_argument(
        "--table", type=Path, metavar="FILE", help="also write the final numbers as CSV, one row a variant and value"
    )
    command.add_argument(
        "--curves", type=Path, metavar="FILE", help="also write the convergence curves as CSV, one row a variant and snapshot"
    )
    command.set_defaults(handler=_experiment)


def _experiment(arguments: argparse.Namespace) -> None:
    """Run the whole pipeline with other values in .sfd/experiments/NAME; what the project computed already is reused."""
    changes = dict(parse_assignment(change) for change in arguments.changes)
    axis = None
    if arguments.vary:
        key, *values = arguments.vary
        if not values:
            raise ConfigError(f"--vary {key} names no value; write them behind the key, such as --vary seed 0 1 2")
        axis = Axis(key, tuple(parse_value(value) for value in values))
    plan = plan_experiment(load_params(PARAMS).model_dump(mode="json"), changes, axis)
    folder = experiment_dir(arguments.name)
    run_experiment(plan, folder)
    if arguments.table:
        write_table(plan, folder, arguments.table)
    if arguments.curves:
        write_curves(folder, arguments.curves)
    print_results(folder)


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split `key=value`. Raises `ConfigError` if there is no equals sign."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text!r} is not of the form key=value, such as train.optimisation.steps=6000")
    return key, parse_value(value)


def parse_value(text: str) -> Any:
    """Read a number, true, false, null or a list as JSON, anything else as text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
