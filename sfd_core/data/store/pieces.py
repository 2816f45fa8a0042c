"""Shards made of pieces: sub-folders that are shards of their own, each written whole or not at all.

Pieces may be made in any order and by several processes, and what a killed run leaves is kept; one manifest over all of them
makes the folder a shard like any other. The result depends on the pieces alone, not on who made them when.
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
"""Rows of a piece at most: what a kill costs each process; more pieces would only be more files to open."""
BYTES = 1 << 30
"""Bytes of the largest field of a piece at most."""


@dataclass(frozen=True)
class Piece:
    """One piece: its folder, and which rows of the source it is made of."""

    path: Path
    rows: range


class PiecedShard:
    """The pieces of the shard folder `path`, made of `rows` rows of a source; each but the last of `rows_per_piece`."""

    def __init__(self, path: Path, fields: Mapping[str, FieldSpec], rows: int, rows_per_piece: int) -> None:
        self.path, self.fields = path, dict(fields)
        starts = range(0, rows, rows_per_piece)
        self.pieces = [
            Piece(path / f"{number:05d}", range(start, min(rows, start + rows_per_piece)))
            for number, start in enumerate(starts)
        ]

    def left(self, processes: Processes) -> Sequence[Piece]:
        """Return this process's share of the pieces that are not there yet; damaged ones are named, deleted and made again."""
        for piece in processes.share(self.pieces):
            if is_whole(piece):
                try:
                    ShardReader(piece.path)
                except DataError as error:
                    print(f"warning: {error}; it is made again now", file=sys.stderr)
                    shutil.rmtree(piece.path)
        processes.wait()
        missing = [piece for piece in self.pieces if not is_whole(piece)]
        processes.wait()
        return processes.share(missing)

    def rows_kept(self) -> int:
        """Return how many rows of the source are in whole pieces."""
        return sum(len(piece.rows) for piece in self.pieces if is_whole(piece))

    def writer(self, piece: Piece) -> ShardWriter:
        """Return the writer of a piece; it may be given fewer rows than the source has, and notes in its `meta`."""
        return ShardWriter(piece.path, self.fields, {}, max(1, len(piece.rows)))

    def notes(self) -> Iterator[dict[str, Any]]:
        """Yield the `meta` of all pieces that are there, in order."""
        return (read_manifest(piece.path)[0]["meta"] for piece in self.pieces if is_whole(piece))

    def join(self, meta: Mapping[str, Any]) -> None:
        """Make the folder a shard: the rows of all pieces in order. Every piece must be there."""
        files: dict[str, list[ShardFile]] = {name: [] for name in self.fields}
        length = 0
        for piece in self.pieces:
            manifest, _ = read_manifest(piece.path)
            length += manifest["length"]
            for name, field in manifest["fields"].items():
                files[name] += [ShardFile(**file | {"file": f"{piece.path.name}/{file['file']}"}) for file in field["files"]]
        write_manifest(self.path, length, {name: (self.fields[name], found) for name, found in files.items()}, meta)


def is_whole(piece: Piece) -> bool:
    """Return whether a piece is there; it is never there in part."""
    return piece.path.is_dir()


def rows_per_piece(fields: Mapping[str, FieldSpec], batch_size: int = 1) -> int:
    """Return how many rows a piece of `fields` shall have: whole batches, and few enough for `ROWS` and `BYTES`."""
    largest = max((field.row_bytes for field in fields.values()), default=1)
    return max(1, min(ROWS, BYTES // largest) // batch_size) * batch_size
