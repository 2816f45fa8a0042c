"""The commands of `sfd`. Heavy packages are imported by the command that needs them, so that `sfd --help` answers at once."""

import argparse
from pathlib import Path
from typing import Any

from sfd_core import __version__
from sfd_core.cli import dashboard, evaluation, experiment, guidance, importing, preset, sampling, solvers, sweep
from sfd_core.cli.results import PARAMS, print_results
from sfd_core.experiment.inputs import in_words, missing_inputs
from sfd_core.experiment.params import Params, load_params
from sfd_core.host.errors import ResourceError, exits_cleanly


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `handler` of what it parses runs the command."""
    parser = argparse.ArgumentParser(
        prog="sfd", description="Semantic-First Diffusion: sample, judge, import, check and vary experiments."
    )
    parser.add_argument("--version", action="version", version=f"sfd {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    sampling.add_sample(commands)
    evaluation.add_evaluate(commands)
    guidance.add_guidance_curve(commands)
    sweep.add_sweep_figure(commands)
    solvers.add_solvers(commands)
    importing.add_import(commands)
    _add_validate(commands)
    _add_results(commands)
    _add_track(commands)
    dashboard.add_dashboard(commands)
    experiment.add_experiment(commands)
    preset.add_preset(commands)
    return parser


def _add_validate(commands: Any) -> None:
    command = commands.add_parser(
        "validate", help="check a parameter file without running anything", description=_validate.__doc__
    )
    command.add_argument("file", nargs="?", type=Path, default=PARAMS, help="parameter file (default: %(default)s)")
    command.set_defaults(handler=_validate)


def _add_track(commands: Any) -> None:
    command = commands.add_parser("track", help="send what MLflow does not have yet", description=_track.__doc__)
    command.add_argument("--strict", action="store_true", help="fail if the store did not take everything")
    command.set_defaults(handler=_track)


def _add_results(commands: Any) -> None:
    command = commands.add_parser("results", help="print the result table", description=_results.__doc__)
    command.add_argument(
        "--project", type=Path, default=Path(), help="folder of the project or of an experiment (default: here)"
    )
    command.set_defaults(handler=_results)


def _validate(arguments: argparse.Namespace) -> None:
    """Check every value of a parameter file, alone and together, and say what the experiment is."""
    params = load_params(arguments.file)
    print(f"{arguments.file} is a valid experiment: {_describe(params)}")
    missing = missing_inputs(params)
    if missing:
        print(f"not there yet: {in_words(missing)}")


def _describe(params: Params) -> str:
    """Say in one sentence what an experiment trains."""
    optimisation = params.train.optimisation
    size, grid, channels = params.prepare.resolution, params.latent_grid, params.texture_vae.channels
    variants = ", ".join(params.active)
    return (
        f"{params.prepare.source} at {size}x{size}, texture latent of {channels} channels on a {grid}x{grid} grid; "
        f"{variants}, each trained for {optimisation.steps:,} steps of {optimisation.batch_size} images"
    )


def _track(arguments: argparse.Namespace) -> None:
    """Send every curve, picture and model under outputs to MLflow that is not there yet."""
    from sfd_core.tracking.project import track_project

    tracked = track_project(load_params(PARAMS))
    if tracked.failed and arguments.strict:
        raise ResourceError(f"not in MLflow at {tracked.uri}: {', '.join(tracked.failed)}; run `sfd track` again later")


def _results(arguments: argparse.Namespace) -> None:
    """Print the distance of every variant at its last snapshot, and where the report is."""
    print_results(arguments.project)


@exits_cleanly
def main() -> None:
    """Run the command that the command line names."""
    arguments = build_parser().parse_args()
    arguments.handler(arguments)
