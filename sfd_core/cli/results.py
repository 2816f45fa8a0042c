"""The result table of a project or an experiment, on the terminal and as a CSV file."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sfd_core.cli.options import PARAMS
from sfd_core.host.paths import OUTPUTS, REPORT, RESULTS, atomic_path

if TYPE_CHECKING:
    from sfd_core.workspace.experiments import Plan


def results(
    *, project: Annotated[Path, Parameter(help="Folder of the project or of an experiment (default: here).")] = Path()
) -> None:
    """Print the result table, and where the report is."""
    from sfd_core.reporting.lines import aligned, table_rows
    from sfd_core.reporting.sources import read_outputs
    from sfd_core.reporting.tables import result_table
    from sfd_core.workspace.places import recorded_params

    table = result_table(read_outputs(recorded_params(project), project / OUTPUTS, project / RESULTS))
    print(f"{table.caption}. {table.note}\n\n{aligned(table_rows(table))}")
    print(f"\nreport: {(project / REPORT / 'index.html').resolve()}")


def write_tables(plan: "Plan", folder: Path, table: Path | None, curves: Path | None, studies: Path | None) -> None:
    """Write the experiment in `folder` as CSV: final numbers, convergence, points of studies, each if its file is given.

    Each row has the hashes of what it was measured with and of how it was trained.
    """
    import pandas as pd

    from sfd_core.evaluation.convergence import read_curves
    from sfd_core.experiment.inputs import all_recorded_digests
    from sfd_core.experiment.params import load_params
    from sfd_core.reporting.protocol import measured_with, recipe
    from sfd_core.reporting.sources import read_outputs, values_of
    from sfd_core.workspace.experiments import origin_values

    params = load_params(folder / PARAMS)
    outputs = read_outputs(params, folder / OUTPUTS, folder / RESULTS)
    hashes = measured_with(params, all_recorded_digests(folder))

    def write(kind: str, path: Path, frame: pd.DataFrame, variants: Iterable[str]) -> None:
        recipes = [recipe(params, params.variants[name]) for name in variants]
        with atomic_path(path) as temporary:
            frame.assign(**hashes, recipe=recipes).to_csv(temporary, index=False)
        print(f"{kind}: {path.resolve()}")

    if table:
        varied = origin_values(plan, ["learning_rate", "seed", "delta_t"])
        shown = outputs.variants.items()
        rows = [varied[name] | {"samples": variant.samples} | values_of(variant.numbers) for name, variant in shown]
        write("table", table, pd.DataFrame(rows), outputs.variants)
    if curves:
        measured = read_curves(folder / OUTPUTS, params.active)
        write("curves", curves, measured, measured["variant"])
    if studies:
        points = outputs.curves.assign(variant=outputs.curves["variant"].map(plan.origins))
        write("studies", studies, points.drop(columns="origin", errors="ignore"), outputs.curves["variant"])
