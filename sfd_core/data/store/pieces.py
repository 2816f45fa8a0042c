"""Shards made of pieces: sub-folders that are shards themselves and are written atomically.

Pieces can be written in any order by several processes, and a killed run keeps its complete pieces. One manifest over all
pieces turns the folder into a normal shard. The result does not depend on which process wrote a piece, or when.
"""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfd_core.data.store.shard_writer import ShardWriter, write_manifest
from sfd_core.data.store.shards import FieldSpec, ShardFile, ShardReader, read_manifest
from sfd_core.host.errors import DataError
from sfd_core.host.processes import Processes

ROWS = 4096
"""Most rows per piece: what a process loses when it is killed. Smaller pieces would mean more files to open."""
BYTES = 1 << 30
"""Most bytes of the largest field of a piece."""


@dataclass(frozen=True)
class Piece:
    """One piece: its folder and its rows of the source."""

    path: Path
    rows: range


class PiecedShard:
    """The pieces of the shard folder `path`, made of `rows` rows of a source; all but the last have `rows_per_piece`."""

    def __init__(self, path: Path, fields: Mapping[str, FieldSpec], rows: int, rows_per_piece: int) -> None:
        self.path, self.fields = path, dict(fields)
        starts = range(0, rows, rows_per_piece)
        self.pieces = [
            Piece(path / f"{number:05d}", range(start, min(rows, start + rows_per_piece)))
            for number, start in enumerate(starts)
        ]

    def left(self, processes: Processes) -> Sequence[Piece]:
        """Return this process's share of the missing pieces; damaged ones are reported, deleted and counted as missing."""
        for piece in processes.share(self.pieces):
            if is_whole(piece):
                try:
                    ShardReader(piece.path)
                except DataError as error:
                    print(f"warning: {error}; writing it again", file=sys.stderr)
                    shutil.rmtree(piece.path)
        processes.wait()
        missing = [piece for piece in self.pieces if not is_whole(piece)]
        processes.wait()
        return processes.share(missing)

    def rows_kept(self) -> int:
        """Return the number of source rows in complete pieces."""
        return sum(len(piece.rows) for piece in self.pieces if is_whole(piece))

    def writer(self, piece: Piece) -> ShardWriter:
        """Return the writer of a piece, which may get fewer rows than the source has."""
        return ShardWriter(piece.path, self.fields, {}, max(1, len(piece.rows)))

    def notes(self) -> Iterator[dict[str, Any]]:
        """Yield the `meta` of all complete pieces, in order."""
        return (read_manifest(piece.path)[0]["meta"] for piece in self.pieces if is_whole(piece))

    def join(self, meta: Mapping[str, Any]) -> None:
        """Write the manifest of the whole shard, with the rows of all pieces in order. All pieces must be complete."""
        files: dict[str, list[ShardFile]] = {name: [] for name in self.fields}
        length = 0
        for piece in self.pieces:
            manifest, _ = read_manifest(piece.path)
            length += manifest["length"]
            for name, field in manifest["fields"].items():
                files[name] += [ShardFile(**file | {"file": f"{piece.path.name}/{file['file']}"}) for file in field["files"]]
        write_manifest(self.path, length, {name: (self.fields[name], found) for name, found in files.items()}, meta)


def is_whole(piece: Piece) -> bool:
    """Whether a piece is complete; pieces are written atomically."""
    return piece.path.is_dir()


def rows_per_piece(fields: Mapping[str, FieldSpec], batch_size: int = 1) -> int:
    """Return the number of rows per piece of `fields`: whole batches, within `ROWS` and `BYTES`."""
    largest = max((field.row_bytes for field in fields.values()), default=1)
    return max(1, min(ROWS, BYTES // largest) // batch_size) * batch_size
