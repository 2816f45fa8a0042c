"""What a sweep shows: its table, its figure, its best point, its runs in MLflow."""

import base64
import csv
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.point import LOGS
from sfd_core.experiment.grid import Point
from sfd_core.host.locks import locked
from sfd_core.host.paths import STATE, atomic_path
from sfd_core.tracking import Store
from sfd_core.tracking.address import is_embedded, is_reachable, public
from sfd_core.tracking.registry import Candidate, register_best
from sfd_core.tracking.store import COMPLETE_TAG, EVALUATION_TAG, KEY_TAG
from sfd_core.tracking.sweep import SweepPoint, record_sweep
from sfd_core.workspace.programs import Place, ProgramError, environment

SWEEPS = STATE / "sweeps"


@dataclass(frozen=True)
class Row:
    """A point and what became of it."""

    point: Point
    status: str
    """`computed`, `restored`, `finished before` or `failed`."""
    record: Mapping[str, Any]
    """Numbers and commit; empty for a failed point."""
    message: str = ""

    @property
    def numbers(self) -> Mapping[str, float]:
        """What was measured, by name."""
        numbers: Mapping[str, float] = self.record.get("numbers", {})
        return numbers


def leading(rows: Sequence[Row]) -> str | None:
    """Return the name of the first distance that was measured: the one that points are ranked by."""
    names = [name for row in rows for name in row.numbers if name == "fid" or name.startswith("fd_")]
    return names[0] if names else None


def best(rows: Sequence[Row]) -> Row | None:
    """Return the row of the lowest leading distance."""
    name = leading(rows)
    return min((row for row in rows if name in row.numbers), key=lambda row: row.numbers[str(name)], default=None)


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as plain columns: what was varied, what became of it, every number."""
    return [
        {"point": row.point.name, "variant": row.point.variant, **row.point.settings, "status": row.status, **row.numbers}
        for row in rows
    ]


def write_comparison(project: Path, name: str, rows: Sequence[Row], over: Sequence[str], place: Place) -> list[Path]:
    """Write `table.csv` and, if a point ended well, `figure.png` to `.sfd/sweeps/<name>`; return what there is."""
    folder = project / SWEEPS / name
    good = [entry for entry, row in zip(table(rows), rows, strict=True) if row.numbers]
    files = [folder / "table.csv"]
    with atomic_path(files[0]) as temporary, temporary.open("w", newline="") as file:
        columns = list(dict.fromkeys(column for entry in good for column in entry))
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(good)
    if good:
        try:
            place.sfd("sweep-figure", str(files[0]), "--out", str(folder / "figure.png"), "--over", *over)
            files.append(folder / "figure.png")
        except ProgramError as error:
            place.told(f"no figure: {error}")
    return files


def send_to_mlflow(
    project: Path, name: str, points: Sequence[SweepPoint], files: Sequence[Path], candidate: Candidate | None = None
) -> list[str]:
    """Record parent and child runs, register the model of a candidate, and return where these are, as lines of Markdown.

    A server that is down is told there and raises nothing.
    """
    uri = environment(project)["MLFLOW_TRACKING_URI"]
    shown = public(uri)
    if not is_reachable(uri):
        return [f"MLflow at {shown} does not answer; run the sweep again to send its table"]
    try:
        with locked(project / SWEEPS / "tracking.lock"):
            store = Store(uri)
            run = record_sweep(store, name, points, files)
            model = register_best(store, candidate) if candidate is not None else None
    except Exception as error:  # noqa: BLE001 - tracking is best effort, whatever a store answers
        print(f"warning: {name}: not in MLflow at {shown}: {error}", file=sys.stderr)
        return [f"not in MLflow at {shown} ({type(error).__name__}); run the sweep again to send its table"]
    lines = [f'Best model: `mlflow.pyfunc.load_model("{model}")`'] if model else []
    if is_embedded(uri):
        return [*lines, f"run {run} of the embedded store (`make serve-mlflow` shows it)"]
    return [*lines, f"[sweep {name} in MLflow]({shown}/#/experiments/{store.experiment_id}/runs/{run})"]


def without_run(project: Path, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of finished points that MLflow has no complete run of; none while it does not answer."""
    trained = [row for row in rows if row.record.get("run_key")]
    uri = environment(project)["MLFLOW_TRACKING_URI"]
    if not trained or not is_reachable(uri):
        return []
    try:
        runs = Store(uri).runs()
    except Exception as error:  # noqa: BLE001 - tracking is best effort, whatever a store answers
        print(f"warning: MLflow at {public(uri)} does not tell its runs: {error}", file=sys.stderr)
        return []
    complete = {(run.tags.get(KEY_TAG), run.tags.get(EVALUATION_TAG, "")) for run in runs if COMPLETE_TAG in run.tags}
    return [row for row in trained if (row.record["run_key"], row.record.get("evaluation", "")) not in complete]


def sweep_place(project: Path, name: str, told: Callable[[str], None]) -> Place:
    """Return where the programs of a sweep itself run, with the sweep's log."""
    return Place(project, project / LOGS / f"sweep-{name}.log", environment(project), (), told)


def refresh_dashboard(place: Place, values: Mapping[str, Any]) -> str:
    """Lay out the comparison in MLflow anew for the experiment `values`; return its link, or nothing where that failed."""
    params = place.log.with_suffix(".yaml")
    params.parent.mkdir(parents=True, exist_ok=True)
    params.write_text(yaml.safe_dump(dict(values), sort_keys=False))
    try:
        return place.sfd("dashboard", "--params", str(params.absolute())).split()[-1]
    except ProgramError as error:
        place.told(f"no dashboard: {error}")
        return ""


def summary(name: str, rows: Sequence[Row], where: Sequence[str]) -> str:
    """Return the sweep in words, as Markdown."""
    counts = {status: sum(row.status == status for row in rows) for status in dict.fromkeys(row.status for row in rows)}
    lines = [f"# Sweep {name}", "", ", ".join(f"{count} {status}" for status, count in counts.items()), ""]
    found, number = best(rows), leading(rows)
    if found is not None and number is not None:
        lines += [f"Best: **{found.point.name}** with {number} {found.numbers[number]:.6g}", ""]
        lines += ["```", f"git checkout refs/sfd/{name}/{found.point.name}", "dvc pull && dvc repro", "```", ""]
    lines += [line for entry in where for line in (entry, "")]
    for row in rows:
        if row.message:
            lines += [f"## {row.point.name} failed", "", "```", row.message, "```", ""]
    return "\n".join(lines)


def data_url(picture: Path) -> str:
    """Return a PNG file as an address that shows it wherever there is no server for it."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def sweep_points(rows: Sequence[Row]) -> list[SweepPoint]:
    """Return the points that ended well as MLflow is to show them."""
    return [_sweep_point(row) for row in rows if row.numbers]


def candidate(name: str, rows: Sequence[Row]) -> Candidate | None:
    """Return the best point as what the registry may hold, None if no point was measured."""
    found, number = best(rows), leading(rows)
    if found is None or number is None or not found.record.get("run_key"):
        return None
    record = found.record
    samples, reference = found.point.values["evaluate"]["final_samples"], record["data"]["outputs/reference"]
    return Candidate(
        sweep=name,
        variant=found.point.variant,
        run_key=record["run_key"],
        evaluation=record.get("evaluation", ""),
        number=number,
        value=float(found.numbers[number]),
        measure=f"{number} of {samples} samples to {reference}",
        commit=str(record["commit"]),
        data=record["data"],
    )


def artifact_key(name: str, what: str) -> str:
    """Return the key of a Prefect artifact in the letters that Prefect takes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{name}-{what}".lower())


def _sweep_point(row: Row) -> SweepPoint:
    settings = {"variant": row.point.variant, **{key: str(value) for key, value in row.point.settings.items()}}
    step = int(row.record.get("training", {}).get("steps", 0))
    numbers = {name: float(value) for name, value in row.numbers.items()}
    commit, run_key = str(row.record["commit"]), str(row.record.get("run_key", ""))
    evaluation = str(row.record.get("evaluation", ""))
    return SweepPoint(row.point.name, row.point.key, settings, numbers, step, commit, run_key, evaluation)
