"""Writes shard folders (see `sfd_core.data.store.shards`) batch by batch; they may be larger than memory."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from sfd_core.data.store.shards import MANIFEST, VERSION, Array, FieldSpec, ShardFile
from sfd_core.host.errors import DataError
from sfd_core.host.paths import atomic_dir, atomic_path


class ShardWriter:
    """Write a shard folder atomically: it appears when the `with` block succeeds.

    `append` takes every field, with rows first. Raises `DataError` if fields, types or shapes differ from `fields`.
    """

    def __init__(
        self, path: Path, fields: Mapping[str, FieldSpec], meta: Mapping[str, Any], rows_per_file: int = 65536
    ) -> None:
        self.path = path
        self.meta: dict[str, Any] = dict(meta)
        """Stored in the manifest; may be changed until the `with` block ends."""
        self._fields = dict(fields)
        self._rows_per_file = rows_per_file
        self._length = 0
        self._done: dict[str, list[ShardFile]] = {name: [] for name in fields}
        self._open: dict[str, io.BufferedRandom] = {}
        self._open_rows = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._folder = self._stack.enter_context(atomic_dir(self.path))
        # Runs before the folder is renamed, so that a failure leaves nothing behind.
        self._stack.push(self._complete)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def append(self, **arrays: Array) -> None:
        """Append N rows: one array (N, *shape) for every field."""
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
        for name, handle in self._open.items():
            handle.seek(0)
            handle.write(_header(self._fields[name], self._open_rows))
            handle.seek(0)
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
            handle.close()
            self._done[name].append(ShardFile(Path(handle.name).name, self._open_rows, digest))
        self._open.clear()

    def _complete(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._close_files()
                fields = {name: (spec, self._done[name]) for name, spec in self._fields.items()}
                write_manifest(self._folder, self._length, fields, self.meta)
        finally:
            for handle in self._open.values():
                handle.close()


def write_manifest(
    folder: Path, length: int, fields: Mapping[str, tuple[FieldSpec, Sequence[ShardFile]]], meta: Mapping[str, Any]
) -> None:
    """Write the manifest of a shard of `length` rows: type and files (relative to `folder`) of every field."""
    described = {name: {**asdict(spec), "files": [asdict(file) for file in files]} for name, (spec, files) in fields.items()}
    manifest = {"version": VERSION, "length": length, "fields": described, "meta": dict(meta)}
    text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text(text)


def _header(spec: FieldSpec, rows: int) -> bytes:
    """Return the `.npy` header; NumPy pads it, so its length does not depend on the number of rows."""
    buffer = io.BytesIO()
    description = {"descr": np.dtype(spec.dtype).str, "fortran_order": False, "shape": (rows, *spec.shape)}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()
