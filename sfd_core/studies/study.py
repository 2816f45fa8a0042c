"""A study of one trained denoiser: a grid of ways to sample, each measured once and kept as a file, as a table and a figure.

A point whose file is there is not drawn again, and an interrupted one resumes.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd
from matplotlib.figure import Figure

from sfd_core.evaluation.measurement import Measured, Order, class_balanced_labels
from sfd_core.evaluation.rerun import Measurement
from sfd_core.experiment.params import SamplerParams, parse_sampler
from sfd_core.host.errors import DataError
from sfd_core.host.locks import locked_folder
from sfd_core.host.paths import atomic_path, write_json
from sfd_core.reporting.charts import save_figure

COLUMNS = (
    "evaluations", "step", "samples", "labels", "seed", "sampler", "guidance", "extractor", "weights", "reference",
    "reference_digest",
)  # fmt: skip
"""What of a number's protocol stands in the table."""


Again = Callable[[Mapping[str, Any]], SamplerParams]
"""How a study would sample at the settings and `evaluations` of a row of its table."""


@dataclass(frozen=True)
class Point:
    """One way to sample."""

    name: str
    """In words."""
    settings: Mapping[str, Any]
    """The first columns of its row."""
    sampler: SamplerParams

    @classmethod
    def of(cls, name: str, settings: Mapping[str, Any], base: SamplerParams, changes: Mapping[str, Any]) -> Self:
        """Return the point that samples as `base` with `changes`. Raises `ConfigError` if these values are impossible."""
        return cls(name, settings, parse_sampler(base.model_dump(mode="json") | dict(changes), name))


@dataclass(frozen=True)
class Study:
    """Points of one denoiser: `<out>/points/*` (one file each), `<out>/<name>.csv` and `<out>/<name>.png` (all of them).

    A table that is there keeps the points of earlier calls that differ from those of this one in nothing but their settings.
    """

    name: str
    draw: Callable[[pd.DataFrame], Figure]
    """The figure of the table."""
    measurement: Measurement
    samples: int
    """Images a point."""
    out: Path

    @property
    def points(self) -> Path:
        """The folder of the points' files."""
        return self.out / "points"

    @cached_property
    def labels(self) -> list[int]:
        """The classes that every point draws."""
        return class_balanced_labels(self.samples, len(self.measurement.pipeline.denoiser.classes))

    def measure(
        self,
        points: Sequence[Point],
        columns: Iterable[str] = COLUMNS,
        keep: Callable[[Point, Path, Measured], None] = lambda *_: None,
    ) -> Iterator[pd.DataFrame]:
        """Measure every point and yield the table of all so far, in the first process alone.

        A row holds a point's settings, `columns` of the protocol, all numbers and the name of the file. `keep` may write more
        of what was drawn, beside the file and before it. Raises `ConfigError`, before anything is drawn, for a point that this
        denoiser cannot be sampled at, `BusyError` if another process is at the study, and `DataError` for a file that holds no
        numbers of a point.
        """
        labels, rows = self.labels, []
        for point in points:
            self.measurement.pipeline.require_possible(labels, point.sampler)
        first = self.measurement.processes.first
        files = [self.points / f"{self.measurement.key(point.sampler, len(labels))}.json" for point in points]
        busy = f"another process is writing the study in {self.out}; wait for it or give another folder"
        with locked_folder(self.out, busy) if first else nullcontext():
            self._require_own_folder()
            # asked once, before the first process writes one: every process must come to the same answers
            known = {file for file in files if file.is_file()}
            self.measurement.processes.wait()
            for number, (point, file) in enumerate(zip(points, files, strict=True), start=1):
                what = f"point {number} of {len(points)}: {point.name}"
                if first:
                    print(f"{what}: measured already" if file in known else what, file=sys.stderr, flush=True)
                if file not in known:
                    known.add(file)
                    result = self.measurement.run(Order(labels, point.sampler), what)
                    if result is not None:
                        numbers, measured = result
                        keep(point, file, measured)
                        write_json(file, {"final": numbers})
                        measured.forget()
                if first:
                    rows.append({**point.settings, **_read_point(file, columns)[1]})
                    yield pd.DataFrame(rows)

    def run(self, points: Sequence[Point], again: Again, columns: Iterable[str] = COLUMNS) -> pd.DataFrame | None:
        """Measure every point, renew table and figure after each, and return the table; None in all processes but the first.

        `again` tells which rows of an earlier call belong to the same curve: those that this call would have drawn.
        """
        table = earlier = None
        for measured in self.measure(points, columns):
            earlier = self._earlier(measured, again) if earlier is None else earlier
            others = earlier[~earlier["file"].isin(measured["file"])]
            axes = list(points[0].settings)
            table = measured if others.empty else pd.concat([measured, others]).sort_values(axes, ignore_index=True)
            self.write(table)
        return table

    def _require_own_folder(self) -> None:
        """Raise `DataError` if the folder holds points of another denoiser."""
        own = self.measurement.weights
        for file in self.points.glob("*.json"):
            found = _read_point(file)[0]["weights"]
            if found != own:
                raise DataError(
                    f"{self.out} holds points of weights {found[:12]}, but this denoiser has {own[:12]}; give another folder"
                )

    def _earlier(self, table: pd.DataFrame, again: Again) -> pd.DataFrame:
        """Return the rows of the table of earlier calls that this one would have drawn."""
        path = self.out / f"{self.name}.csv"
        before = pd.read_csv(path) if path.is_file() else table[:0]
        if list(before.columns) != list(table.columns):
            return table[:0]
        own = [self._is_own(row, again) for row in before.to_dict("records")]
        return before[pd.Series(own, before.index, dtype=bool)]

    def _is_own(self, row: Mapping[Any, Any], again: Again) -> bool:
        """Whether this call would have written the row's file: it is named after all that its numbers depend on."""
        file = self.points / str(row["file"])
        if not file.is_file():
            return False
        # the adaptive solver's row holds what it chose, the recipe what it was asked for
        asked = {**row, "evaluations": _read_point(file)[0]["sampler"]["evaluations"]}
        return bool(file.stem == self.measurement.key(again(asked), len(self.labels)))

    def write(self, table: pd.DataFrame) -> None:
        """Write the table and its figure."""
        with atomic_path(self.out / f"{self.name}.csv") as temporary:
            table.to_csv(temporary, index=False)
        with atomic_path(self.out / f"{self.name}.png") as temporary:
            save_figure(self.draw(table), temporary)


def _read_point(file: Path, columns: Iterable[str] = ()) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return the recipe of the numbers in `file` and their row: what `columns` of the protocol hold, and every value."""
    try:
        numbers: Mapping[str, Any] = json.loads(file.read_text())["final"]
        protocol = next(iter(numbers.values()))["protocol"]
        recipe: Mapping[str, Any] = protocol["recipe"]
        known = {**protocol, "step": recipe["step"]}
        values = {name: number["value"] for name, number in numbers.items()}
        return recipe, {**{name: known[name] for name in columns}, **values, "file": file.name}
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise DataError(f"{file} holds no numbers of a point ({error!r}); delete it and run the command again") from error
