"""The one on-disk format: a folder of memory-mapped `.npy` files, described and hashed by `manifest.json`.

A field is split into files of a fixed number of rows. `sfd_core.data.store.shard_writer` writes such folders;
`sfd_core.data.store.pieces` writes large ones, with files in sub-folders.
"""

import hashlib
import json
import mmap
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sfd_core.data.store.verified import known_finite, note_finite, verify_files
from sfd_core.host.errors import DataError, NumericsError, ResourceError

VERSION = 1
MANIFEST = "manifest.json"
FINITE_CHECK_BYTES = 1 << 24
SPARE_FILES = 256
"""Open files reserved for other purposes than shards."""
GATHERED_ROWS = 4096
"""Up to this many rows are gathered one by one from several files; more rows are gathered file by file."""
READ_AHEAD_SHARE = 0.25
"""Up to this fraction of the machine's memory, a field uses the system's read-ahead and is soon in memory. For larger fields,
only the requested rows are fetched, one batch at a time; read-ahead would read many times as much."""

Array = NDArray[Any]


@dataclass(frozen=True)
class FieldSpec:
    """Type and shape of one row of a field."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes per row on disk."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class ShardFile:
    """One `.npy` file of a field."""

    file: str
    rows: int
    sha256: str


class MappedFile:
    """The rows (N, *shape) of one `.npy` file, in a read-only memory map."""

    def __init__(self, rows: Array, mapped: mmap.mmap, offset: int) -> None:
        self.rows = rows
        self._mapped, self._offset = mapped, offset
        self._row_bytes = rows.itemsize * int(np.prod(rows.shape[1:], dtype=np.int64))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file. Raises `ValueError` if it is no array, holds objects, or has another size than its header says."""
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"format version {version}")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype.hasobject:
                raise ValueError("it holds objects")
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
            needed = offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            if size != needed:
                raise ValueError(f"{size} bytes, its header needs {needed}")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return cls(np.ndarray(shape, dtype, mapped, offset), mapped, offset)

    def flattened(self) -> Self:
        """Return the same file with the first two axes merged."""
        rows = self.rows
        return type(self)(rows.reshape(len(rows) * rows.shape[1], *rows.shape[2:]), self._mapped, self._offset)

    def expect_random_access(self) -> None:
        """Switch off read-ahead; only `fetch` reads in advance."""
        self._mapped.madvise(mmap.MADV_RANDOM)

    def fetch(self, start: int, stop: int) -> None:
        """Start reading rows `start` to `stop` from the disk, without waiting."""
        first = (self._offset + start * self._row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        self._mapped.madvise(mmap.MADV_WILLNEED, first, self._offset + stop * self._row_bytes - first)


class ShardArray:
    """All rows of one field, (N, *shape), read through memory maps."""

    def __init__(self, spec: FieldSpec, parts: list[MappedFile]) -> None:
        self._spec, self._parts = spec, parts
        self._ends = np.cumsum([len(part.rows) for part in parts], dtype=np.int64)
        self._starts = np.concatenate([[0], self._ends[:-1]])
        self.dtype = np.dtype(spec.dtype)
        self.shape = (int(self._ends[-1]) if parts else 0, *spec.shape)
        self._fetches = len(self) * spec.row_bytes > READ_AHEAD_SHARE * memory_bytes()
        if self._fetches:
            for part in parts:
                part.expect_random_access()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def array(self) -> Array:
        """All rows as one array: the memory map itself if there is one file, otherwise a copy in memory."""
        return self._parts[0].rows if len(self._parts) == 1 else self._between(0, len(self))

    def flattened(self) -> "ShardArray":
        """Return the data with the first two axes merged: pairs (N, 2, C, ...) become rows (2N, C, ...), pair i at 2i."""
        return ShardArray(FieldSpec(self._spec.dtype, self._spec.shape[1:]), [part.flattened() for part in self._parts])

    def __getitem__(self, index: int | slice | Array) -> Array:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self._between(start, max(start, stop)) if step == 1 else self.take(np.arange(start, stop, step))
        if isinstance(index, int | np.integer):
            return np.asarray(self.take(np.asarray([index]))[0])
        return self.take(index)

    def take(self, indices: Array | list[int]) -> Array:
        """Return a copy of the rows at `indices` (N,), in their order; negative indices count from the end."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and not (-len(self) <= wanted.min() and wanted.max() < len(self)):
            raise IndexError(f"row {int(wanted[np.abs(wanted).argmax()])} of an array with {len(self)} rows")
        wanted = np.where(wanted < 0, wanted + len(self), wanted)
        rows = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        owner = np.searchsorted(self._ends, wanted, side="right")
        inside = wanted - self._starts[owner] if wanted.size else wanted
        if self._fetches:
            for part, row in zip(owner.tolist(), inside.tolist(), strict=True):
                self._parts[part].fetch(row, row + 1)
        if len(self._parts) == 1:
            # every index is in range; modes other than `raise` write to `rows` without a temporary copy
            return np.take(self._parts[0].rows, inside, axis=0, out=rows, mode="clip")
        self._gather(owner, inside, rows)
        return rows

    def _gather(self, owner: Array, inside: Array, rows: Array) -> None:
        """Fill `rows` with rows `inside` of files `owner`."""
        parts = self._parts
        if 0 < len(rows) <= GATHERED_ROWS:
            wanted = zip(owner.tolist(), inside.tolist(), strict=True)
            np.concatenate([parts[part].rows[row : row + 1] for part, row in wanted], out=rows)
            return
        order = np.argsort(owner, kind="stable")
        for mine in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
            if len(mine):
                rows[mine] = parts[owner[mine[0]]].rows[inside[mine]]

    def _between(self, start: int, stop: int) -> Array:
        """Return a copy of rows `start` to `stop`."""
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._starts, stop, side="left"))
        for part, offset in zip(self._parts[first:last], self._starts[first:last].tolist(), strict=True):
            begin, end = max(0, start - offset), min(len(part.rows), stop - offset)
            if self._fetches:
                part.fetch(begin, end)
            rows[offset + begin - start : offset + end - start] = part.rows[begin:end]
        return rows

    def blocks(self, rows: int) -> Iterator[Array]:
        """Yield all rows in order, in blocks of at most `rows`."""
        for start in range(0, len(self), rows):
            yield self[start : start + rows]


class ShardReader:
    """Read a shard folder; `reader[field]` is a `ShardArray`.

    With `verify`, the content of every file must match its sha256 (see `sfd_core.data.store.verified`). Raises `DataError` with
    the file if the folder is missing, incomplete, of another version or changed after it was written. Raises `ResourceError`
    if the limit of open files is too low, since every memory map keeps its file open.
    """

    def __init__(self, path: Path, verify: bool = True) -> None:
        self.path = path
        manifest, text = read_manifest(path)
        self._length: int = manifest["length"]
        self.meta: dict[str, Any] = manifest["meta"]
        self.digest = hashlib.sha256(text).hexdigest()
        """Identity of the content: the hash of the manifest, which holds the hash of every file."""
        self._files = {name: [ShardFile(**file) for file in field["files"]] for name, field in manifest["fields"].items()}
        self._verified = verify
        if verify:
            verify_files(path, {file.file: file.sha256 for files in self._files.values() for file in files})
        _allow_open_files(path, sum(map(len, self._files.values())))
        self.fields: dict[str, ShardArray] = {}
        for name, field in manifest["fields"].items():
            spec = FieldSpec(field["dtype"], tuple(field["shape"]))
            self.fields[name] = ShardArray(spec, [_map_file(path, spec, file) for file in self._files[name]])

    def __len__(self) -> int:
        return self._length

    def __contains__(self, field: str) -> bool:
        return field in self.fields

    def __getitem__(self, field: str) -> ShardArray:
        if field not in self.fields:
            raise DataError(f"{self.path} has no field {field!r}, only {', '.join(self.fields)}; run its stage again")
        return self.fields[field]

    def require_finite(self, field: str) -> None:
        """Raise `NumericsError` with the first row of `field` that holds NaN or infinity.

        Verified content that was finite once is not read again on this machine.
        """
        array = self[field]
        content = hashlib.sha256("".join(file.sha256 for file in self._files[field]).encode()).hexdigest()
        if known_finite(content):
            return
        row_bytes = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64)))
        size = max(1, FINITE_CHECK_BYTES // row_bytes)
        with ThreadPoolExecutor() as pool:
            for start, count, bad in pool.map(lambda start: _not_finite(array, start, size), range(0, len(array), size)):
                if count:
                    raise NumericsError(
                        f"{self.path}: row {start + bad} of {field!r} holds NaN or infinity ({count} such rows in its block); "
                        "the stage that wrote it diverged: check its losses, then run it again"
                    )
        if self._verified:
            note_finite(content, f"{field} of {self.path}")


def read_manifest(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the manifest of the shard folder `path` and its bytes. Raises `DataError`; see `ShardReader`."""
    try:
        text = (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path / MANIFEST} does not exist; run the stage that writes {path} (`dvc repro`)") from error
    try:
        manifest: dict[str, Any] = json.loads(text)
        version = manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path / MANIFEST} is no shard manifest ({error}); delete {path} and run its stage again") from error
    if version != VERSION:
        raise DataError(f"{path / MANIFEST} has format version {version}, this program reads {VERSION}; run its stage again")
    return manifest, text


def _allow_open_files(folder: Path, count: int) -> None:
    """Let this process open `count` more files; a large shard exceeds the usual limit of 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(list(Path("/dev/fd").iterdir())) + count + SPARE_FILES
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:
        raise ResourceError(
            f"{folder} has {count} files, so {wanted} files may be open at once, but only {hard} are allowed; raise the "
            "hard limit (`ulimit -Hn`)"
        ) from error


def evenly_spaced(length: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of `length` rows, evenly spaced, first and last among them; all rows if there are no more."""
    return np.linspace(0, length - 1, min(most, length)).astype(np.int64)


def memory_bytes() -> int:
    """Return the memory of the machine in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _map_file(folder: Path, spec: FieldSpec, file: ShardFile) -> MappedFile:
    path = folder / file.file
    try:
        mapped = MappedFile.open(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing, but its manifest lists it; run its stage again") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is no array file ({error}); delete {path.parent} and run its stage again") from error
    shape, dtype = mapped.rows.shape, mapped.rows.dtype
    if shape != (file.rows, *spec.shape) or dtype != np.dtype(spec.dtype):
        raise DataError(
            f"{path} holds {dtype} {shape}, its manifest says {spec.dtype} {(file.rows, *spec.shape)}; "
            f"delete {path.parent} and run its stage again"
        )
    return mapped


def _not_finite(array: ShardArray, start: int, size: int) -> tuple[int, int, int]:
    """Return `start`, the number of non-finite rows among the next `size` rows, and the first of them relative to `start`."""
    block = array[start : start + size]
    finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
    return start, int((~finite).sum()), int(np.argmin(finite))
