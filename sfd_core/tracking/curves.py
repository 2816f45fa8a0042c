"""Reads curves on disk as points of a run."""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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

    def points(self) -> Iterator[Point]:
        """Yield the points on disk, without non-finite values and without an unfinished last row."""
        clock = [(row[STEP], row[SECONDS]) for row in _rows(self.clock)]
        for row in _rows(self.path):
            seconds = row.get(SECONDS, _interpolated(row[STEP], clock))
            for name, value in row.items():
                if name != STEP and math.isfinite(value):
                    yield Point(metric_name(self.prefix, name), int(row[STEP]), value, seconds)


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
