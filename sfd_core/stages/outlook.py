"""What a long stage is about to take, told before it starts: rows, bytes, free disk and hours."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfd_core.host.paths import existing_parent, free_disk, require_disk
from sfd_core.host.progress import format_rate

SHAPES_RESULTS = False


@dataclass(frozen=True)
class Outlook:
    """Work that is to be done."""

    what: str
    rows: Mapping[str, int]
    """Of each part."""
    row_bytes: int
    done_rows: int
    """Kept from an interrupted run."""
    seconds_per_row: float | None
    """Measured on the first few rows in one process; None if all of them take but a moment."""
    processes: int = 1
    """That share the work."""

    @property
    def left(self) -> int:
        """Rows that are still to be made."""
        return sum(self.rows.values()) - self.done_rows

    def show(self, disk: Path) -> None:
        """Print a small table on stderr."""
        total = sum(self.rows.values())
        lines = {
            "rows": f"{total:,} ({', '.join(f'{name} {count:,}' for name, count in self.rows.items())})",
            "bytes": f"{format_bytes(total * self.row_bytes)}, {self.row_bytes:,} a row",
            "free disk": f"{format_bytes(free_disk(disk))}",
        }
        if self.done_rows:
            lines["kept"] = f"{self.done_rows:,} rows of an interrupted run"
        if self.seconds_per_row is not None:
            rate = self.processes / max(self.seconds_per_row, 1e-9)
            shared = f" in {self.processes} processes" if self.processes > 1 else ""
            lines["time"] = f"about {format_seconds(self.left / rate)} at {format_rate(rate)} rows/s{shared}"
        print(self.what, file=sys.stderr)
        for name, text in lines.items():
            print(f"  {name:<10}{text}", file=sys.stderr, flush=True)


def require_room(work: Path, out: Path, needed_bytes: int, purpose: str) -> None:
    """Raise `ResourceError` unless `needed_bytes` in all fit into `work`, less what lies there already.

    A result that is then copied to another disk must fit there, too.
    """
    kept = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
    require_disk(work, needed_bytes - kept, purpose)
    if existing_parent(work).stat().st_dev != existing_parent(out).stat().st_dev:
        require_disk(out, needed_bytes, purpose)


def tell_of_forgotten(works: Path, current: Path) -> None:
    """Print which folders beside `current` hold interrupted runs of other parameters or inputs, and their size."""
    for folder in sorted(works.iterdir() if works.is_dir() else []):
        if folder != current and folder.is_dir():
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            print(
                f"note: {folder} keeps {format_bytes(size)} of an interrupted run with other parameters or inputs; "
                "delete it if you will not return to it",
                file=sys.stderr,
            )


def format_bytes(count: float) -> str:
    """Return a size in decimal units, such as `251.9 GB`."""
    units: Sequence[str] = ("bytes", "kB", "MB", "GB")
    for unit in units:
        if count < 1000:
            return f"{count:.1f} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1000
    return f"{count:,.1f} TB"


def format_seconds(seconds: float) -> str:
    """Return a duration in hours, minutes or seconds, such as `3.2 hours`."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
