"""The result table of a project or an experiment, on the terminal and as a CSV file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sfd_core.cli.options import PARAMS
from sfd_core.host.paths import OUTPUTS, REPORT, atomic_path

if TYPE_CHECKING:
    from sfd_core.workspace.experiments import Plan

STUDIES = Path("docs") / "results"
"""Committed tables of experiments, shown in the report."""


def results(
    *, project: Annotated[Path, Parameter(help="Folder of the project or of an experiment (default: here).")] = Path()
) -> None:
    """Print the result table, and where the report is."""
    from sfd_core.reporting.lines import aligned, table_rows
    from sfd_core.reporting.sources import read_outputs
    from sfd_core.reporting.tables import result_table
    from sfd_core.workspace.places import recorded_params

    table = result_table(read_outputs(recorded_params(project), project / OUTPUTS, project / STUDIES))
    print(f"{table.caption}. {table.note}\n\n{aligned(table_rows(table))}")
    print(f"\nreport: {(project / REPORT / 'index.html').resolve()}")


def write_table(plan: "Plan", folder: Path, path: Path) -> None:
    """Write the final numbers of the experiment in `folder` to the CSV file `path`, one row a variant and value."""
    import pandas as pd

    from sfd_core.experiment.params import load_params
    from sfd_core.reporting.sources import read_outputs
    from sfd_core.workspace.experiments import origin_values

    outputs = read_outputs(load_params(folder / PARAMS), folder / OUTPUTS, folder / STUDIES)
    varied = origin_values(plan, ["learning_rate", "seed", "delta_t"])
    rows = [
        varied[name] | {key: number.value for key, number in variant.numbers.items()}
        for name, variant in outputs.variants.items()
    ]
    with atomic_path(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def write_studies(plan: "Plan", folder: Path, path: Path) -> None:
    """Write the points of all studies of the experiment in `folder` to the CSV file `path`."""
    from sfd_core.experiment.params import load_params
    from sfd_core.reporting.sources import read_outputs

    points = read_outputs(load_params(folder / PARAMS), folder / OUTPUTS, folder / STUDIES).curves
    with atomic_path(path) as temporary:
        points.assign(variant=points["variant"].map(plan.origins)).drop(columns="origin", errors="ignore").to_csv(
            temporary, index=False
        )


def write_curves(folder: Path, path: Path) -> None:
    """Write the convergence curves of the experiment in `folder` to the CSV file `path`, one row a variant and snapshot."""
    from sfd_core.evaluation.convergence import read_curves
    from sfd_core.experiment.params import load_params

    curves = read_curves(folder / OUTPUTS, load_params(folder / PARAMS).active)
    with atomic_path(path) as temporary:
        curves.to_csv(temporary, index=False)
