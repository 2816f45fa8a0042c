"""What `features` and `encode` share: a network's values for every row of a part, batch by batch, to a shard of pieces.

Reading, computing and writing go on at the same time, each in a thread; several processes share the pieces. A part is the same,
bit for bit, however many processes made it and wherever they were broken off: batches are cut inside pieces.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from sfd_core.data.store.pieces import Piece, PiecedShard
from sfd_core.data.store.shards import Array
from sfd_core.host.ahead import ahead
from sfd_core.host.processes import Processes
from sfd_core.host.progress import with_progress
from sfd_core.latents.composite import StreamingMoments
from sfd_core.stages.outlook import Outlook

Source = TypeVar("Source")

TIMED = 3
"""Batches that the time of all is estimated from, besides a first one to warm up."""


@dataclass(frozen=True)
class Values:
    """What was computed of a batch: a row of every field, and values whose channel statistics are wanted."""

    fields: Mapping[str, Array]
    counted: Mapping[str, StreamingMoments]


@dataclass(frozen=True)
class Extraction(Generic[Source]):
    """The work on one part."""

    name: str
    """Shown with the progress."""
    shard: PiecedShard
    batch_size: int
    read: Callable[[range], Source]
    """Rows to what `compute` needs of them, from the disk."""
    compute: Callable[[range, Source], Values]

    def run(self, processes: Processes) -> None:
        """Make this process's share of the pieces that are not there yet; return when all are there."""
        left = self.shard.left(processes)
        batches = [rows for piece in left for rows in self._batches(piece)]
        sources = ahead((rows, self.read(rows)) for rows in batches)
        values: Iterator[Values] = ahead(self.compute(rows, source) for rows, source in sources)
        if processes.first and batches:
            total = sum(len(rows) for rows in batches)
            values = with_progress(values, total, _name(self.name, processes), step=self.batch_size)
        for piece in left:
            self._write(piece, values)
        next(values, None)  # tells the progress that this was all
        processes.wait()

    def counted(self) -> dict[str, StreamingMoments]:
        """Return the merged statistics of all rows, by name."""
        merged: dict[str, StreamingMoments] = {}
        for notes in self.shard.notes():
            for name, state in notes["moments"].items():
                moments = StreamingMoments.from_state(state)
                merged.setdefault(name, StreamingMoments(moments.channels)).merge(moments)
        return merged

    def seconds_per_row(self) -> float | None:
        """Time the first few batches; None where there are too few for it to be worth it."""
        rows = [rows for piece in self.shard.pieces[:1] for rows in self._batches(piece)][: TIMED + 1]
        if sum(len(piece.rows) for piece in self.shard.pieces) < 20 * self.batch_size * TIMED or len(rows) < TIMED + 1:
            return None
        warm_up, *timed = rows
        self.compute(warm_up, self.read(warm_up))
        start = time.perf_counter()
        for batch in timed:
            self.compute(batch, self.read(batch))
        return (time.perf_counter() - start) / sum(len(batch) for batch in timed)

    def _batches(self, piece: Piece) -> Iterator[range]:
        return (piece.rows[start : start + self.batch_size] for start in range(0, len(piece.rows), self.batch_size))

    def _write(self, piece: Piece, values: Iterator[Values]) -> None:
        total: dict[str, StreamingMoments] = {}
        with self.shard.writer(piece) as writer:
            for _ in self._batches(piece):
                batch = next(values)
                if self.shard.fields:
                    writer.append(**batch.fields)
                for name, moments in batch.counted.items():
                    total.setdefault(name, StreamingMoments(moments.channels)).merge(moments)
            writer.meta["moments"] = {name: moments.state() for name, moments in total.items()}


def run_all(stage: str, parts: Mapping[str, Extraction[Source]], disk: Path, processes: Processes) -> None:
    """Tell what is to come, then do this process's share of every part; return when all are there. They lie on `disk`."""
    if processes.first:
        shards = {part: extraction.shard for part, extraction in parts.items()}
        rows = {part: sum(len(piece.rows) for piece in shard.pieces) for part, shard in shards.items()}
        row_bytes = sum(field.row_bytes for field in shards["train"].fields.values())
        kept = sum(shard.rows_kept() for shard in shards.values())
        Outlook(stage, rows, row_bytes, kept, parts["train"].seconds_per_row(), processes.count).show(disk)
    for extraction in parts.values():
        extraction.run(processes)


def _name(name: str, processes: Processes) -> str:
    return name if processes.count == 1 else f"{name} (1 of {processes.count} processes)"
