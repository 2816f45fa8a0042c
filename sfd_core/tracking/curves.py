"""Reads curves on disk as points of a run."""

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
    """A CSV file with columns `step` and `seconds`; its other columns are logged as `prefix/column`."""

    path: Path
    prefix: str

    def points(self) -> Iterator[Point]:
        """Yield the points on disk, without non-finite values and without an unfinished last row."""
        if not self.path.exists():
            return
        with self.path.open(newline="") as file:
            for row in csv.DictReader(line for line in file if line.endswith("\n")):
                numbers = {name: _number(text) for name, text in row.items()}
                step, seconds = numbers.get(STEP, math.nan), numbers.get(SECONDS, 0.0)
                if not math.isfinite(step):
                    continue
                for name, value in numbers.items():
                    if name != STEP and math.isfinite(value):
                        yield Point(metric_name(self.prefix, name), int(step), value, seconds)


def metric_name(prefix: str, name: str) -> str:
    """Return `prefix/name` with only characters that MLflow allows."""
    return f"{prefix}/" + re.sub(r"[^\w./ -]", "_", name)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
