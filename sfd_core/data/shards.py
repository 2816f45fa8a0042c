"""The one on-disk format: a folder of memory-mapped `.npy` files, described and hashed by `manifest.json`.

A field continues in a further file every so many rows. `sfd_core.data.shard_writer` writes such folders, and
`sfd_core.data.pieces` large ones, whose files lie in sub-folders.
"""

import hashlib
import json
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfd_core.errors import DataError, NumericsError, ResourceError

VERSION = 1
MANIFEST = "manifest.json"
FINITE_CHECK_BYTES = 1 << 26
SPARE_FILES = 256
"""Files that may be open besides those of shards."""

Array = NDArray[Any]


@dataclass(frozen=True)
class FieldSpec:
    """Type and shape of one row of a field."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes that one row takes on disk."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class ShardFile:
    """One `.npy` file of a field."""

    file: str
    rows: int
    sha256: str


class ShardArray:
    """All rows of one field, (N, *shape), read through memory maps."""

    def __init__(self, spec: FieldSpec, parts: list[Array]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self.dtype = np.dtype(spec.dtype)
        self.shape = (int(self._ends[-1]) if parts else 0, *spec.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def array(self) -> Array:
        """All rows as one array: the memory map itself when there is one file, else a copy in memory."""
        if len(self._parts) == 1:
            return self._parts[0]
        return np.concatenate(self._parts) if self._parts else np.empty(self.shape, self.dtype)

    def __getitem__(self, index: int | slice | Array) -> Array:
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        if isinstance(index, int | np.integer):
            return np.asarray(self.take(np.asarray([index]))[0])
        return self.take(index)

    def take(self, indices: Array | list[int]) -> Array:
        """Return a copy of the rows at `indices` (N,), in their order; negative indices count from the end."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and not (-len(self) <= wanted.min() and wanted.max() < len(self)):
            raise IndexError(f"row {int(wanted[np.abs(wanted).argmax()])} of an array with {len(self)} rows")
        wanted = np.where(wanted < 0, wanted + len(self), wanted)
        if len(self._parts) == 1:
            return np.asarray(self._parts[0][wanted])
        rows = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        owner = np.searchsorted(self._ends, wanted, side="right")
        for part in np.unique(owner):
            mine = owner == part
            start = int(self._ends[part]) - len(self._parts[part])
            rows[mine] = self._parts[part][wanted[mine] - start]
        return rows

    def blocks(self, rows: int) -> Iterator[Array]:
        """Yield all rows in order, at most `rows` at a time."""
        for start in range(0, len(self), rows):
            yield self[start : start + rows]


class ShardReader:
    """Read a shard folder; `reader[field]` is a `ShardArray`.

    With `verify` the content of every file is compared with its sha256. Raises `DataError` that names the file if the
    folder is missing, incomplete, of another version or changed since it was written, and `ResourceError` if the system lets
    a process keep too few files open: a memory map keeps its file open.
    """

    def __init__(self, path: Path, verify: bool = True) -> None:
        self.path = path
        manifest, text = read_manifest(path)
        self._length: int = manifest["length"]
        self.meta: dict[str, Any] = manifest["meta"]
        self.digest = hashlib.sha256(text).hexdigest()
        """Identity of the content: the manifest names the hash of every file."""
        _allow_open_files(path, sum(len(field["files"]) for field in manifest["fields"].values()))
        self.fields: dict[str, ShardArray] = {}
        with ThreadPoolExecutor() as pool:  # hashing takes a core for each file
            for name, field in manifest["fields"].items():
                spec = FieldSpec(field["dtype"], tuple(field["shape"]))
                opened = pool.map(partial(_open_file, path, spec, verify), [ShardFile(**file) for file in field["files"]])
                self.fields[name] = ShardArray(spec, list(opened))

    def __len__(self) -> int:
        return self._length

    def __contains__(self, field: str) -> bool:
        return field in self.fields

    def __getitem__(self, field: str) -> ShardArray:
        if field not in self.fields:
            raise DataError(f"{self.path} has no field {field!r}, only {', '.join(self.fields)}; run its stage again")
        return self.fields[field]

    def require_finite(self, field: str) -> None:
        """Raise `NumericsError` that names the first row of `field` that holds NaN or infinity."""
        array = self[field]
        row_bytes = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:])))
        size = max(1, FINITE_CHECK_BYTES // row_bytes)
        for number, block in enumerate(array.blocks(size)):
            finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
            if not finite.all():
                row = number * size + int(np.argmin(finite))
                raise NumericsError(
                    f"{self.path}: row {row} of {field!r} holds NaN or infinity ({int((~finite).sum())} such rows in its "
                    "block); the stage that wrote it diverged: check its losses, then run it again"
                )


def read_manifest(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return what the manifest of the shard folder `path` says, and its bytes. Raises `DataError`; see `ShardReader`."""
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
    """Let this process open `count` more files; the usual limit of 1,024 in all is less than a large shard has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(list(Path("/dev/fd").iterdir())) + count + SPARE_FILES
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:
        raise ResourceError(
            f"{folder} consists of {count} files, so that {wanted} may be open at once, but {hard} are allowed; raise the "
            "hard limit (`ulimit -Hn`)"
        ) from error


def _open_file(folder: Path, spec: FieldSpec, verify: bool, file: ShardFile) -> Array:
    path = folder / file.file
    try:
        if verify:
            with path.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
            if digest != file.sha256:
                raise DataError(
                    f"{path} has sha256 {digest[:12]}..., its manifest says {file.sha256[:12]}...: the file was changed or "
                    f"damaged after it was written; delete {path.parent} and run its stage again"
                )
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing, but its manifest lists it; run its stage again") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is no array file ({error}); delete {path.parent} and run its stage again") from error
    if array.shape != (file.rows, *spec.shape) or array.dtype != np.dtype(spec.dtype):
        raise DataError(
            f"{path} holds {array.dtype} {array.shape}, its manifest says {spec.dtype} {(file.rows, *spec.shape)}; "
            f"delete {path.parent} and run its stage again"
        )
    return array
