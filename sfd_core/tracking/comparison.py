"""What a sweep shows: its table, its figure, its best point, its runs in MLflow."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfd_core.experiment.grid import Point
from sfd_core.experiment.numbers import frechet_distances
from sfd_core.experiment.params import fingerprint, parse_sampler
from sfd_core.experiment.values import dump_yaml
from sfd_core.host.addresses import in_a_line, public
from sfd_core.host.locks import locked
from sfd_core.host.paths import STATE, atomic_path, read_json, stage_dir, write_json
from sfd_core.tracking.address import has_run, is_embedded, why_unusable
from sfd_core.tracking.registry import Candidate, register_best
from sfd_core.tracking.runs import FLOW_RUN_TAG
from sfd_core.tracking.store import COMPLETE_TAG, EVALUATION_TAG, KEY_TAG, Store
from sfd_core.tracking.sweep import FILES_TAG, REF_TAG, SweepPoint, record_sweep, shown_place
from sfd_core.workspace import git
from sfd_core.workspace.dvc import Place, ProgramError, remote_object

SWEEPS = STATE / "sweeps"
SHOWN = "shown.json"
"""What of a sweep was shown last, so that asking again for the same sends nothing."""


@dataclass(frozen=True)
class Sent:
    """Where the results of a sweep are."""

    where: list[str]
    """Paragraphs of Markdown."""
    run: str = ""
    """The sweep's run in MLflow; "" if not everything arrived."""
    runs: Mapping[str, str] = field(default_factory=dict)
    """Point -> page of its run in MLflow, or the id of the run in the embedded store."""


@dataclass(frozen=True)
class Row:
    """A point of a sweep and how it ended."""

    point: Point
    status: str
    """`computed`, `restored`, `finished before`, `pruned` or `failed`."""
    record: Mapping[str, Any]
    """Numbers and commit; no numbers for a pruned point, nothing for a failed one."""
    message: str = ""

    @property
    def numbers(self) -> Mapping[str, float]:
        """What was measured, by name."""
        numbers: Mapping[str, float] = self.record.get("numbers", {})
        return numbers

    @property
    def losses(self) -> dict[int, float]:
        """Validation loss of texture by step."""
        return {int(step): loss for step, loss in self.record.get("validation", {}).items()}

    @property
    def columns(self) -> dict[str, Any]:
        """The row as plain columns: what was varied, how it ended, every number."""
        return {
            "point": self.point.name,
            "variant": self.point.variant,
            **self.point.settings,
            "status": self.status,
            **self.numbers,
        }


@dataclass(frozen=True)
class Comparison:
    """All points of a sweep, side by side."""

    name: str
    rows: Sequence[Row]

    @property
    def measured(self) -> list[Row]:
        """Rows of the points that have numbers."""
        return [row for row in self.rows if row.numbers]

    @property
    def leading(self) -> str:
        """Name of the first distance that was measured, which ranks the points; "" if there is none."""
        names = frechet_distances(name for row in self.rows for name in row.numbers)
        return names[0].name if names else ""

    @property
    def lowest(self) -> float | None:
        """The lowest leading distance; None without one."""
        return None if self.best is None else self.best.numbers[self.leading]

    @property
    def measures(self) -> list[str]:
        """How the leading distance was measured, see `MEASURED_BY`; points of several ways do not compare."""
        return list(dict.fromkeys(_measure(row, self.leading) for row in self.rows if self.leading in row.numbers))

    @property
    def best(self) -> Row | None:
        """The row of the lowest leading distance; None if the distances of the rows do not compare."""
        name = self.leading
        rows = [row for row in self.rows if name in row.numbers] if len(self.measures) == 1 else []
        return min(rows, key=lambda row: row.numbers[name], default=None)

    def write(self, place: Place, over: Sequence[str]) -> list[Path]:
        """Write `table.csv` and, if distances compare, `figure.png` to `.sfd/sweeps/<name>`; return the files."""
        table, *figures = self._files(place)
        with atomic_path(table) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(column for row in self.measured for column in row.columns)))
            writer.writeheader()
            writer.writerows(row.columns for row in self.measured)
        try:
            for figure in figures:
                place.sfd("sweep-figure", str(table), "--out", str(figure), "--over", *over)
        except ProgramError as error:
            place.report(f"no figure: {error}")
            return [table]
        return [table, *figures]

    def send(self, place: Place, files: Sequence[Path], over: Sequence[str], complete: bool) -> list[str]:
        """Send the sweep to MLflow and return where it is, see `send_to_mlflow`; remember that if all of it is `complete`."""
        points = [self._sweep_point(place, row) for row in self.measured]
        sent = send_to_mlflow(place, self.name, points, files, self.rows[0].point.values, self.candidate)
        where = [*sent.where, _places(points, sent.runs)]
        if complete and sent.run and files == self._files(place):
            shown = {"digest": self._digest(place, over), "run": sent.run, "where": where}
            write_json(place.folder / SWEEPS / self.name / SHOWN, shown)
        return where

    def shown(self, place: Place, over: Sequence[str]) -> tuple[list[Path], list[str]] | None:
        """Return the files and where the results are, if these were shown before and MLflow still has the sweep's run."""
        files = self._files(place)
        before = read_json(place.folder / SWEEPS / self.name / SHOWN)
        is_same = before.get("digest") == self._digest(place, over) and all(file.is_file() for file in files)
        if is_same and has_run(place.environment["MLFLOW_TRACKING_URI"], before["run"]):
            return files, list(before["where"])
        return None

    def _files(self, place: Place) -> list[Path]:
        folder = place.folder / SWEEPS / self.name
        return [folder / "table.csv"] if self.best is None else [folder / "table.csv", folder / "figure.png"]

    def _sweep_point(self, place: Place, row: Row) -> SweepPoint:
        record = row.record
        weights = record.get("data", {}).get((stage_dir("train", row.point.variant) / "snapshots").as_posix())
        places = {
            REF_TAG: f"{git.REFS}/{self.name}/{row.point.name}",
            FLOW_RUN_TAG: record.get("flow_run", ""),
            FILES_TAG: remote_object(place.folder, weights) if weights else "",
        }
        return SweepPoint(
            name=row.point.name,
            key=row.point.key,
            settings={"variant": row.point.variant, **{key: str(value) for key, value in row.point.settings.items()}},
            numbers={name: float(value) for name, value in row.numbers.items()},
            step=int(record.get("training", {}).get("steps", 0)),
            commit=str(record["commit"]),
            run_key=str(record.get("run_key", "")),
            evaluation=str(record.get("evaluation", "")),
            places={tag: found for tag, found in places.items() if found},
        )

    def _digest(self, place: Place, over: Sequence[str]) -> str:
        rows = [(row.point.key, row.record.get("commit")) for row in self.rows]
        return fingerprint(rows, list(over), public(place.environment["MLFLOW_TRACKING_URI"]))

    def without_run(self, place: Place) -> list[Row] | None:
        """Return the rows of finished points that MLflow has no complete run of; None while it does not answer."""
        trained = [row for row in self.rows if row.record.get("run_key")]
        uri = place.environment["MLFLOW_TRACKING_URI"]
        if not trained:
            return []
        if why_unusable(uri):
            return None
        try:
            runs = Store(uri).runs()
        except Exception as error:  # noqa: BLE001 - tracking is best effort, whatever a store answers
            place.report(f"warning: MLflow at {public(uri)} does not list its runs: {in_a_line(error, uri)}")
            return None
        complete = {(run.tags.get(KEY_TAG), run.tags.get(EVALUATION_TAG, "")) for run in runs if COMPLETE_TAG in run.tags}
        return [row for row in trained if (row.record["run_key"], row.record.get("evaluation", "")) not in complete]

    @property
    def candidate(self) -> Candidate | None:
        """The best point as a candidate for the model registry; None if no point was measured."""
        found, number = self.best, self.leading
        if found is None or not found.record.get("run_key"):
            return None
        record = found.record
        sampler = parse_sampler(found.point.values["evaluate"]["sampler"] | {"batch_size": 1}, found.point.name)
        return Candidate(
            sweep=self.name,
            variant=found.point.variant,
            run_key=record["run_key"],
            evaluation=record.get("evaluation", ""),
            number=number,
            value=float(found.numbers[number]),
            measure=f"{number} of {_measure(found, number)}, sampler {fingerprint(sampler.model_dump(mode='json'))}",
            commit=str(record["commit"]),
            data=record["data"],
        )

    def summary(self, where: Sequence[str]) -> str:
        """Return the sweep as Markdown; `where` are paragraphs about where its results are."""
        statuses = [row.status for row in self.rows]
        counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
        lines = [f"# Sweep {self.name}", "", counts, ""]
        if self.best is not None:
            point = self.best.point.name
            lines += [f"Best: **{point}** with {self.leading} {self.best.numbers[self.leading]:.6g}", ""]
            lines += ["```", f"git checkout refs/sfd/{self.name}/{point}", "dvc pull && dvc repro", "```", ""]
        if len(self.measures) > 1:
            lines += [f"No best point, because distances of {' and of '.join(self.measures)} do not compare.", ""]
        lines += [line for entry in where for line in (entry, "")]
        for row in self.rows:
            if row.message:
                lines += [f"## {row.point.name} {row.status}", "", "```", row.message, "```", ""]
        return "\n".join(lines)


def _measure(row: Row, number: str) -> str:
    if measured := row.record.get("measured", {}).get(number):
        return ", ".join(f"{key} {value}" for key, value in measured.items())
    reference = row.record.get("data", {}).get("outputs/reference", "an unknown reference")  # older records tell no more
    return f"{row.point.values['evaluate']['final_samples']} samples to {reference}"


def send_to_mlflow(
    place: Place,
    name: str,
    points: Sequence[SweepPoint],
    files: Sequence[Path],
    values: Mapping[str, Any],
    candidate: Candidate | None = None,
) -> Sent:
    """Record parent and child runs, register the model of a candidate, refresh the dashboard of the experiment `values`.

    A server that is down is reported in the answer and raises nothing.
    """
    uri = place.environment["MLFLOW_TRACKING_URI"]
    shown = public(uri)
    if reason := why_unusable(uri):
        return Sent([f"MLflow at {shown}: {reason}; run the sweep again to send its table"])
    try:
        with locked(place.folder / SWEEPS / "tracking.lock"):
            store = Store(uri)
            recorded = record_sweep(store, name, points, files)
            model = register_best(store, candidate) if candidate is not None else None
    except Exception as error:  # noqa: BLE001 - tracking is best effort, whatever a store answers
        place.report(f"warning: {name}: not in MLflow at {shown}: {in_a_line(error, uri)}")
        return Sent([f"not in MLflow at {shown} ({type(error).__name__}); run the sweep again to send its table"])
    lines = [f'Best model: `mlflow.pyfunc.load_model("{model}")`'] if model else []
    run, embedded = recorded.parent, is_embedded(uri)
    runs = f"{shown}/#/experiments/{store.experiment_id}/runs/"
    if embedded:
        lines.append(f"run {run} of the embedded store (`make serve-mlflow` shows it)")
    else:
        lines.append(f"[sweep {name} in MLflow]({runs}{run})")
    dashboard = _refresh_dashboard(place, name, values)
    pages = {point: found if embedded else f"{runs}{found}" for point, found in recorded.runs.items()}
    return Sent(lines + dashboard, run if dashboard else "", pages)


def _places(points: Sequence[SweepPoint], runs: Mapping[str, str]) -> str:
    """Return a table in Markdown: where everything of each point is."""
    rows = [["point", "MLflow", "Git ref", "commit", "Prefect", "weights"], ["---"] * 6]
    for point in points:
        found = [runs.get(point.name, ""), *(point.places.get(tag, "") for tag in (REF_TAG, FLOW_RUN_TAG, FILES_TAG))]
        found.insert(2, point.commit)
        rows.append([point.name, *(shown_place(place) for place in found)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _refresh_dashboard(place: Place, name: str, values: Mapping[str, Any]) -> list[str]:
    """Lay out the comparison in MLflow anew; return its link, or nothing if that fails."""
    params = place.folder / SWEEPS / name / "params.yaml"
    params.parent.mkdir(parents=True, exist_ok=True)
    params.write_text(dump_yaml(values))
    try:
        return [f"[comparison of all runs in MLflow]({place.sfd('dashboard', '--params', str(params.absolute())).split()[-1]})"]
    except ProgramError as error:
        place.report(f"no dashboard: {error}")
        return []
