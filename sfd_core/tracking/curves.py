"""Reads curves on disk as points of a run."""

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfd_core.host.progress import FORECAST_STEPS, SHORT
from sfd_core.host.settings import Settings

STEP, SECONDS = "step", "seconds"


@dataclass(frozen=True)
class Point:
    """One value of one curve."""

    key: str
    step: int
    value: float
    seconds: float
    """Training seconds at `step`."""


@dataclass(frozen=True)
class Curve:
    """A CSV file with a column `step`; its other columns are logged as `prefix/column`."""

    path: Path
    prefix: str
    clock: Path | None = None
    """A CSV file with columns `step` and `seconds`, for a curve without `seconds`."""
    steps: int | None = None
    """Steps of the whole training, for a curve with `seconds` whose hours and cost are forecast."""

    def points(self) -> Iterator[Point]:
        """Yield the points on disk, without non-finite values and without an unfinished last row; then the forecast."""
        clock = [(row[STEP], row[SECONDS]) for row in _rows(self.clock)]
        rows = list(_rows(self.path))
        for row in rows:
            seconds = row.get(SECONDS, _interpolated(row[STEP], clock))
            for name, value in row.items():
                if name != STEP and math.isfinite(value):
                    yield Point(metric_name(self.prefix, name), int(row[STEP]), value, seconds)
        yield from self._forecast(rows)

    def _forecast(self, rows: Sequence[Mapping[str, float]]) -> Iterator[Point]:
        """Yield hours and cost of a long training as its first 200 steps foretell them."""
        begun = next((row for row in rows if row[STEP] >= FORECAST_STEPS), None)
        if begun is None or self.steps is None:
            return
        step, passed = int(begun[STEP]), begun.get(SECONDS, math.nan)
        seconds, price = passed / step * self.steps, Settings.read().hour_price
        if seconds - passed > SHORT:
            yield Point("forecast/hours", step, seconds / 3600, passed)
            if price is not None:
                yield Point("forecast/cost", step, seconds / 3600 * price, passed)


def metric_name(prefix: str, name: str) -> str:
    """Return `prefix/name` with only characters that MLflow allows."""
    return f"{prefix}/" + re.sub(r"[^\w./ -]", "_", name)


def _rows(path: Path | None) -> Iterator[dict[str, float]]:
    """Yield the rows of a file that have a step."""
    if path is None or not path.exists():
        return
    with path.open(newline="") as file:
        for row in csv.DictReader(line for line in file if line.endswith("\n")):
            numbers = {name: _number(text) for name, text in row.items()}
            if math.isfinite(numbers.get(STEP, math.nan)):
                yield numbers


def _interpolated(step: float, clock: Sequence[tuple[float, float]]) -> float:
    return float(np.interp(step, [at for at, _ in clock], [seconds for _, seconds in clock])) if clock else 0.0


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
