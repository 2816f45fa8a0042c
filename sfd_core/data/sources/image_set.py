"""What every source of images gives: a list of names, classes and labels, and a way to the pixels of one image."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfd_core.data.sources.crops import Pixels
from sfd_core.host.errors import DataError

PARTS = frozenset({"train", "test", "val", "valid", "validation", "unlabeled"})
"""What the folders of a data set's parts are called."""


@dataclass(frozen=True)
class Location:
    """Where images are, and the key of `params.yaml` that says so."""

    key: str
    path: str

    def __str__(self) -> str:
        return f"{self.key} {self.path}"


@dataclass(frozen=True)
class ImageSet:
    """Images that are listed, not yet read; memory grows with their number, not with their size."""

    names: list[str]
    """Unique and stable: an emoji's code points, a path below the root, a member of a tar file, a row of a Parquet file."""
    labels: list[int]
    classes: list[str]
    render: Callable[[int, int], Pixels]
    """(index, copy) -> (resolution, resolution, 3) uint8, from any thread; raises `DataError` for what is no readable image."""
    stamp: Callable[[], str]
    """Hash of what changes when the files behind the images do: their sizes and times, or the versions of packages."""

    def digest(self) -> str:
        """Return the hash of everything that is listed, and of `stamp`."""
        digest = hashlib.sha256(self.stamp().encode())
        for text in (*self.classes, "", *self.names):
            digest.update(text.encode(errors="surrogateescape") + b"\0")
        digest.update(np.asarray(self.labels, dtype=np.int64).tobytes())
        return digest.hexdigest()


def find_files(location: Location, suffix: str) -> list[Path]:
    """Return the files that a location means, sorted: one file, all of a folder with this suffix, or those of a pattern.

    Raises `DataError` if there is none.
    """
    given = Path(location.path)
    if given.is_dir():
        found = sorted(file for file in given.iterdir() if file.suffix == suffix and not file.name.startswith("."))
        problem = f"holds no {suffix} file"
    elif any(letter in location.path for letter in "*?["):
        found = sorted(Path(given.anchor).glob(str(given.relative_to(given.anchor))))
        problem = "matches no file"
    else:
        found = [given] if given.is_file() else []
        problem = "does not exist"
    if not found:
        raise DataError(
            f"{location} {problem}; give one {suffix} file, a folder of them, or a pattern such as 'train-*{suffix}' in quotes"
        )
    return found


def stamp_files(files: Iterable[Path]) -> str:
    """Return a hash of the names, sizes and times of change of files. Raises `DataError` if one is gone."""
    digest = hashlib.sha256()
    for file in files:
        try:
            found = file.stat()
        except OSError as error:
            raise DataError(f"{file} went away while images were listed ({error}); run again") from error
        digest.update(f"{file.name}\0{found.st_size}\0{found.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def numbered_classes(labels: Sequence[int], location: Location) -> list[str]:
    """Return the names "0", "1", ... of classes that are known by number alone.

    Raises `DataError` if a number below the largest has no image: the classes would not be what the numbers say.
    """
    present = set(labels)
    count = max(present) + 1
    empty = next((number for number in range(count) if number not in present), None)
    if empty is not None:
        raise DataError(
            f"{location}: labels reach {count - 1}, but class {empty} has no image ({count - len(present)} such classes); "
            "number the classes without gaps, or add the missing files"
        )
    return [str(number) for number in range(count)]


def require_classes(classes: Sequence[str], location: Location) -> None:
    """Raise `DataError` if class folders are called like the parts of a data set."""
    if len(classes) > 1 and set(classes) <= PARTS:
        raise DataError(
            f"{location} holds {' and '.join(classes)}, which are parts of a data set, not classes; name the part to train on "
            "in prepare.path, and the other in prepare.held_out_path"
        )


def require_plain(name: str, copy: int) -> None:
    """Raise `DataError` for another rendering than the plain one, which is all that files have."""
    if copy != 0:
        raise DataError(f"copy {copy} of {name} was asked for, but files have one rendering; set prepare.copies to 1")
