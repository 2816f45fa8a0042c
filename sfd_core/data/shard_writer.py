"""Writing shard folders (see `sfd_core.data.shards`): at one go, or so that a killed run continues after its last whole file.

Rows are appended batch by batch and may outgrow memory.
"""

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from sfd_core.data.shards import MANIFEST, VERSION, Array, FieldSpec, ShardFile
from sfd_core.errors import DataError
from sfd_core.paths import atomic_dir, atomic_path, file_digest, fsync


class ShardWriter:
    """Write a shard folder atomically: it appears whole when the `with` block ends, or not at all.

    `append` takes every field, rows first. Raises `DataError` if fields, types or shapes differ from `fields`.
    """

    def __init__(
        self, path: Path, fields: Mapping[str, FieldSpec], meta: Mapping[str, Any], rows_per_file: int = 65536
    ) -> None:
        self.path = path
        self.meta: dict[str, Any] = dict(meta)
        """Travels in the manifest; may be completed until the `with` block ends."""
        self._fields = dict(fields)
        self._rows_per_file = rows_per_file
        self._length = 0
        self._done: dict[str, list[ShardFile]] = {name: [] for name in fields}
        self._open: dict[str, io.BufferedRandom] = {}
        self._open_rows = 0
        self._stack = ExitStack()

    def __len__(self) -> int:
        return self._length

    def __enter__(self) -> Self:
        self._folder = self._start(self._stack)
        # Runs before the folder is renamed, so that a failure in it leaves nothing behind either.
        self._stack.push(self._complete)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def append(self, **arrays: Array) -> None:
        """Append rows: one array (N, *shape) for every field, with one N."""
        if set(arrays) != set(self._fields):
            raise DataError(f"{self.path}: got fields {sorted(arrays)}, but the shard holds {sorted(self._fields)}")
        rows = len(next(iter(arrays.values())))
        for name, array in arrays.items():
            self._check(name, array, rows)
        start = 0
        while start < rows:
            if not self._open:
                self._open_files()
            stop = min(rows, start + self._rows_per_file - self._open_rows)
            for name, array in arrays.items():
                self._open[name].write(np.ascontiguousarray(array[start:stop]).data)
            self._open_rows += stop - start
            start = stop
            if self._open_rows == self._rows_per_file:
                self._close_files()
        self._length += rows

    def _start(self, stack: ExitStack) -> Path:
        """Return the folder that files are written to."""
        return stack.enter_context(atomic_dir(self.path))

    def _closed(self, files: Mapping[str, ShardFile]) -> None:
        """Hear of one more whole file of every field."""

    def _check(self, name: str, array: Array, rows: int) -> None:
        spec = self._fields[name]
        if array.dtype != np.dtype(spec.dtype) or array.shape != (rows, *spec.shape):
            raise DataError(
                f"{self.path}: rows of {name!r} are {array.dtype} {array.shape}, but the shard holds {spec.dtype} "
                f"{(rows, *spec.shape)}; convert them before appending"
            )

    def _open_files(self) -> None:
        for name, files in self._done.items():
            handle = (self._folder / f"{name}-{len(files):05d}.npy").open("w+b")
            handle.write(_header(self._fields[name], 0))
            self._open[name] = handle
        self._open_rows = 0

    def _close_files(self) -> None:
        if not self._open:
            return
        files = {}
        for name, handle in self._open.items():
            handle.seek(0)
            handle.write(_header(self._fields[name], self._open_rows))
            handle.seek(0)
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
            handle.close()
            files[name] = ShardFile(Path(handle.name).name, self._open_rows, digest)
            self._done[name].append(files[name])
        self._open.clear()
        self._closed(files)

    def _complete(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._close_files()
                self._write_manifest()
        finally:
            for handle in self._open.values():
                handle.close()

    def _write_manifest(self) -> None:
        fields = {
            name: {**asdict(spec), "files": [asdict(file) for file in self._done[name]]} for name, spec in self._fields.items()
        }
        manifest = {"version": VERSION, "length": self._length, "fields": fields, "meta": self.meta}
        text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
        with atomic_path(self._folder / MANIFEST) as temporary:
            temporary.write_text(text)


@dataclass(frozen=True)
class _Entry:
    """One line of a journal: a whole file of every field, and the notes taken before its last row."""

    files: dict[str, ShardFile]
    notes: list[Any]


class ResumableShardWriter(ShardWriter):
    """Write a shard folder in place and continue where an earlier, interrupted run stood: after its last whole file.

        with ResumableShardWriter(folder, fields, meta, journal) as writer:
            for row in range(len(writer), rows):
                writer.append(...)

    Inside the `with` block `len(writer)` says how many rows are there already; the same rows in the same batches give the
    same bytes, however often a run is interrupted. The folder is a shard once the block ended well and stays half-written
    otherwise, so put it into a folder that `paths.resumable_dir` moves to its place. `journal` is a file that lies outside
    of it, which names every whole file with its hash; a file that does not match is written again, with all after it. A
    journal of other fields or another `rows_per_file` is discarded with its files.
    """

    def __init__(
        self,
        path: Path,
        fields: Mapping[str, FieldSpec],
        meta: Mapping[str, Any],
        journal: Path,
        rows_per_file: int = 65536,
    ) -> None:
        super().__init__(path, fields, meta, rows_per_file)
        self.notes: list[Any] = []
        """What `note` was given, in order, up to the rows that are there."""
        self._journal = journal
        self._pending: list[Any] = []

    def note(self, value: Any) -> None:
        """Keep a value of plain JSON with the rows: after an interruption it is in `notes` again if the row appended next is
        there, and forgotten together with that row otherwise.
        """
        self.notes.append(value)
        self._pending.append(value)

    def _start(self, stack: ExitStack) -> Path:  # noqa: ARG002
        self.path.mkdir(parents=True, exist_ok=True)
        entries = self._whole_entries()
        kept = {file.file for entry in entries for file in entry.files.values()}
        for leftover in self.path.iterdir():
            if leftover.name not in kept:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        with atomic_path(self._journal) as temporary:
            temporary.write_text("".join(_line(value) for value in [self._header(), *map(asdict, entries)]))
        for entry in entries:
            for name, file in entry.files.items():
                self._done[name].append(file)
            self._length += next((file.rows for file in entry.files.values()), 0)
            self.notes += entry.notes
        return self.path

    def _closed(self, files: Mapping[str, ShardFile]) -> None:
        for path in (*(self._folder / file.file for file in files.values()), self._folder):
            fsync(path)
        with self._journal.open("a") as journal:
            journal.write(_line(asdict(_Entry(dict(files), self._pending))))
            journal.flush()
            os.fsync(journal.fileno())
        self._pending = []

    def _open_files(self) -> None:
        last = next(iter(self._done.values()))[-1:]
        if last and last[0].rows != self._rows_per_file:
            raise DataError(
                f"{self.path} was whole with {self._length} rows, so no row can follow {last[0].file}; "
                f"delete {self._journal} and run again"
            )
        super()._open_files()

    def _complete(self, kind: type[BaseException] | None, *details: object) -> None:
        super()._complete(kind, *details)
        if kind is None and self._pending:
            self._closed({})

    def _header(self) -> dict[str, Any]:
        fields = {name: [spec.dtype, list(spec.shape)] for name, spec in self._fields.items()}
        return {"version": VERSION, "rows_per_file": self._rows_per_file, "fields": fields}

    def _whole_entries(self) -> list[_Entry]:
        """Return the entries of the journal, in order, up to the first whose files are not what it says."""
        found = []
        for number, line in enumerate(_lines(self._journal)):
            if number == 0:
                if line != self._header():
                    break
                continue
            entry = _Entry({name: ShardFile(**file) for name, file in line["files"].items()}, line["notes"])
            damaged = next((file.file for file in entry.files.values() if not self._is_whole(file)), None)
            if damaged is not None:
                print(f"warning: {self.path / damaged} is damaged; it is written again", file=sys.stderr)
                break
            found.append(entry)
        return found

    def _is_whole(self, file: ShardFile) -> bool:
        path = self.path / file.file
        return path.is_file() and file_digest(path) == file.sha256


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, allow_nan=False) + "\n"


def _lines(journal: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a journal; a kill may have cut the last one."""
    try:
        lines = journal.read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    whole: list[dict[str, Any]] = []
    for line in lines:
        try:
            value = json.loads(line) if line.endswith("\n") else None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            break
        whole.append(value)
    return whole


def _header(spec: FieldSpec, rows: int) -> bytes:
    """Return the `.npy` header; NumPy pads it so that its length does not depend on the number of rows."""
    buffer = io.BytesIO()
    description = {"descr": np.dtype(spec.dtype).str, "fortran_order": False, "shape": (rows, *spec.shape)}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()
