"""The command `sfd`: look at, sample from and judge what the pipeline made, and run it with other values.

Heavy packages are imported by the command that needs them, so that `sfd --help` and `sfd validate` answer at once.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from sfd_core import __version__
from sfd_core.config import Params, load_params
from sfd_core.errors import ConfigError, exits_cleanly
from sfd_core.experiments import Axis, Plan, experiment_dir, origin_values, plan_experiment, run_experiment
from sfd_core.paths import OUTPUTS, REPORT, atomic_path

PARAMS = Path("params.yaml")
RESULTS = Path("results")
"""Committed tables of experiments, shown in the report."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `handler` of what it parses runs the command."""
    parser = argparse.ArgumentParser(
        prog="sfd", description="Semantic-First Diffusion: sample, judge, check and vary experiments."
    )
    parser.add_argument("--version", action="version", version=f"sfd {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_validate(commands)
    _add_track(commands)
    _add_results(commands)
    _add_experiment(commands)
    return parser


def _add_validate(commands: Any) -> None:
    command = commands.add_parser(
        "validate", help="check a parameter file without running anything", description=_validate.__doc__
    )
    command.add_argument("file", nargs="?", type=Path, default=PARAMS, help="parameter file (default: %(default)s)")
    command.set_defaults(handler=_validate)


def _add_track(commands: Any) -> None:
    command = commands.add_parser("track", help="send what MLflow does not have yet", description=_track.__doc__)
    command.set_defaults(handler=_track)


def _add_results(commands: Any) -> None:
    command = commands.add_parser("results", help="print the result table", description=_results.__doc__)
    command.add_argument(
        "--project", type=Path, default=Path(), help="folder of the project or of an experiment (default: here)"
    )
    command.set_defaults(handler=_results)


def _add_experiment(commands: Any) -> None:
    command = commands.add_parser(
        "experiment", help="run the pipeline beside the project with other values", description=_experiment.__doc__
    )
    command.add_argument("name", help="its folder is .sfd/experiments/NAME")
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
    command.add_argument("--table", type=Path, help="also write the final numbers as a CSV file, one row a variant and value")
    command.set_defaults(handler=_experiment)


def _validate(arguments: argparse.Namespace) -> None:
    """Check every value of a parameter file, alone and together, and say what the experiment is."""
    params = load_params(arguments.file)
    print(f"{arguments.file} is a valid experiment: {_describe(params)}")


def _describe(params: Params) -> str:
    """Say in one sentence what an experiment trains."""
    optimisation = params.train.optimisation
    size, grid, channels = params.prepare.resolution, params.latent_grid, params.texture_vae.channels
    variants = ", ".join(params.active)
    return (
        f"{params.prepare.source} at {size}x{size}, texture latent of {channels} channels on a {grid}x{grid} grid; "
        f"{variants}, each trained for {optimisation.steps:,} steps of {optimisation.batch_size} images"
    )


def _track(_: argparse.Namespace) -> None:
    """Send every curve, picture and model under outputs to MLflow that is not there yet."""
    from sfd_core.tracking import track_project

    track_project(load_params())


def _results(arguments: argparse.Namespace) -> None:
    """Print the distance of every variant at its last snapshot, and where the report is."""
    _print_results(arguments.project)


def _print_results(project: Path) -> None:
    from sfd_core.reporting.sources import read_outputs
    from sfd_core.reporting.tables import result_table

    outputs = read_outputs(load_params(project / PARAMS), project / OUTPUTS, project / RESULTS)
    table = result_table(outputs)
    heads = [f"{group}: {column}" for (group, _), column in zip(_spread(table.groups), table.columns, strict=True)]
    rows = [["", *heads], *([row.title, *(cell.text for cell in row.cells)] for row in table.rows)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    print(f"{table.caption}. {table.note}\n")
    for row in rows:
        cells = [f"{text:>{width}}" for text, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([f"{row[0]:<{widths[0]}}", *cells]).rstrip())
    print(f"\nreport: {(project / REPORT / 'index.html').resolve()}")


def _spread(groups: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return [group for group in groups for _ in range(group[1])]


def _experiment(arguments: argparse.Namespace) -> None:
    """Run the whole pipeline with other values in .sfd/experiments/NAME; what the project computed already is reused."""
    changes = dict(_assignment(change) for change in arguments.changes)
    axis = None
    if arguments.vary:
        key, *values = arguments.vary
        axis = Axis(key, tuple(_parse_value(value) for value in values))
    values = load_params().model_dump(mode="json")
    plan = plan_experiment(values, changes, axis)
    folder = experiment_dir(arguments.name)
    run_experiment(plan, folder)
    if arguments.table:
        _write_table(plan, folder, arguments.table)
    _print_results(folder)


def _write_table(plan: Plan, folder: Path, path: Path) -> None:
    import pandas as pd

    from sfd_core.reporting.sources import read_outputs

    outputs = read_outputs(load_params(folder / PARAMS), folder / OUTPUTS, folder / RESULTS)
    varied = origin_values(plan, ["learning_rate", "seed"])
    rows = [
        varied[name] | {key: number.value for key, number in variant.numbers.items()}
        for name, variant in outputs.variants.items()
    ]
    with atomic_path(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text!r} is not of the form key=value, such as train.optimisation.steps=6000")
    return key, _parse_value(value)


def _parse_value(text: str) -> Any:
    """Read a number, true, false, null or a list as JSON, anything else as text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@exits_cleanly
def main() -> None:
    """Run the command that the command line names."""
    arguments = build_parser().parse_args()
    arguments.handler(arguments)


if __name__ == "__main__":
    main()
