"""The training curve on disk: one CSV row per logging interval, written before anything else hears of it."""

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from sfd_core.host.errors import DataError
from sfd_core.host.paths import atomic_path

BEFORE_TERMS = ("step", "images_seen", "seconds")


@dataclass(frozen=True)
class Record:
    """One row of the curve; loss terms and gradient norm are means over the interval that ends at `step`."""

    step: int
    """Optimiser steps done."""
    images_seen: int
    seconds: float
    """Seconds of pure training since the first step, over all resumes."""
    terms: Mapping[str, float]
    """Every named loss term, `loss` among them."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    images_per_second: float
    """Over the interval."""

    def row(self) -> dict[str, float | int]:
        """Return the record as one CSV row, columns in order."""
        return {
            "step": self.step,
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            **self.terms,
            "gradient_norm": self.gradient_norm,
            "learning_rate": self.learning_rate,
            "images_per_second": self.images_per_second,
        }


class History:
    """Appends records to a CSV file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def truncate(self, step: int) -> None:
        """Drop the rows beyond `step`, and a row that a kill cut short; with `step` 0 drop the file."""
        self.close()
        if step == 0 or not self.path.exists():
            self.path.unlink(missing_ok=True)
            return
        header, *rows = self.path.read_text().splitlines(keepends=True)
        kept = [row for row in rows if row.endswith("\n") and int(row.split(",", 1)[0]) <= step]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join([header, *kept]))

    def append(self, record: Record) -> None:
        """Write one row; it is in the operating system's hands when this returns."""
        row = record.row()
        if self._file is None:
            self._file = self._open(list(row))
        csv.writer(self._file, lineterminator="\n").writerow(row.values())
        self._file.flush()

    def require_kept(self) -> None:
        """Raise `OSError` if the file was deleted after rows were appended: they are lost."""
        if self._file is not None and not self.path.exists():
            raise OSError(f"{self.path.name} was deleted while the training ran")

    def sync(self) -> None:
        """Force what was appended onto the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Force what was appended onto the disk and close the file."""
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None

    def _open(self, columns: list[str]) -> TextIO:
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(",".join(columns) + "\n")
        with self.path.open() as existing:
            header = existing.readline().rstrip("\n").split(",")
        if header != columns:
            raise DataError(f"{self.path} has columns {header}, but the run reports {columns}; delete it and train again")
        return self.path.open("a")


def write_empty_history(path: Path) -> None:
    """Write the curve of a network that was not trained here: columns, but no rows."""
    with atomic_path(path) as temporary:
        temporary.write_text(",".join([*BEFORE_TERMS, "loss"]) + "\n")


def read_history(path: Path) -> list[dict[str, float]]:
    """Read a curve written by `History`, one dict of numbers per row; raises `DataError` if it is none."""
    try:
        with path.open(newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is no training curve ({error}); run the training stage again") from error
