"""What every image source provides: names, classes and labels, and the pixels of one image on request."""

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfd_core.data.sources.crops import Pixels
from sfd_core.host.errors import DataError
from sfd_core.host.files import files_below

PARTS = frozenset({"train", "test", "val", "valid", "validation", "unlabeled"})
"""Usual folder names of the parts of a data set."""


PACKED = frozenset({".tgz", ".tbz", ".txz"})
"""Suffixes of compressed tar files beside `.tar.gz` and the like."""


@dataclass(frozen=True)
class Location:
    """The path of images, and its key in `params.yaml`."""

    key: str
    path: str

    def __str__(self) -> str:
        return f"{self.key} {self.path}"


@dataclass(frozen=True)
class ImageSet:
    """Images that are listed but not read yet; memory grows with their number, not their size."""

    names: list[str]
    """Unique and stable: code points of an emoji, path below the root, member of a tar file, row of a Parquet file."""
    labels: list[int]
    classes: list[str]
    render: Callable[[int, int], Pixels]
    """(index, copy) -> (resolution, resolution, 3) uint8; thread-safe. Raises `DataError` for an unreadable image.

    Copies other than 0 are for twemoji alone: `PrepareParams` refuses them elsewhere."""
    stamp: Callable[[], str]
    """Hash that changes when the source does: sizes and modification times of files, or versions of packages."""

    def digest(self) -> str:
        """Return the hash of names, labels, classes and `stamp`."""
        digest = hashlib.sha256(self.stamp().encode())
        for text in (*self.classes, "", *self.names):
            digest.update(text.encode(errors="surrogateescape") + b"\0")
        digest.update(np.asarray(self.labels, dtype=np.int64).tobytes())
        return digest.hexdigest()


def find_files(location: Location, suffix: str) -> list[Path]:
    """Return the files of a location, sorted: one file, all files of a folder with this suffix, or matches of a pattern.

    What else lies in the folder is passed over, and stderr says so. Raises `DataError` if there are none, if compressed ones
    lie among them, if a sub-folder holds more, and if two have one name, which names their images.
    """
    given = Path(location.path)
    if given.is_dir():
        below = files_below(given)
        fitting = [file for file in below if file.suffix.lower() == suffix]
        found = [file for file in fitting if file.parent == given]
        problem = f"holds no {suffix} file"
        others = [str(file.relative_to(given)) for file in below if file.suffix.lower() != suffix]
        if packed := [name for name in others if f"{suffix}." in name.lower() or Path(name).suffix.lower() in PACKED]:
            raise DataError(f"{location} holds {packed[0]} ({len(packed)} compressed files); decompress or remove them")
        if deep := [file for file in fitting if file.parent != given]:
            raise DataError(
                f"{location} holds {deep[0].relative_to(given)} ({len(deep)} {suffix} files in sub-folders), which would be "
                f"passed over; give a pattern such as '{given}/**/*{suffix}' in quotes, or move them"
            )
        if found and others:
            print(f"skipped: {len(others)} files of {given} that are no {suffix} files, such as {others[0]}", file=sys.stderr)
    elif given.is_file():
        found = [given]
    else:
        found = sorted(Path(given.anchor).glob(str(given.relative_to(given.anchor))))
        problem = "matches no file" if any(letter in location.path for letter in "*?[") else "does not exist"
    if not found:
        raise DataError(
            f"{location} {problem}; give one {suffix} file, a folder of them, or a pattern such as 'train-*{suffix}' in quotes"
        )
    name, count = Counter(file.stem for file in found).most_common(1)[0]
    if count > 1:
        raise DataError(f"{location} holds {count} files named {name}, which would give their images equal names; rename them")
    return found


def stamp_files(files: Iterable[Path]) -> str:
    """Return a hash of names, sizes and modification times of files. Raises `DataError` if one is missing."""
    digest = hashlib.sha256()
    for file in files:
        try:
            found = file.stat()
        except OSError as error:
            raise DataError(f"{file} disappeared while images were listed ({error}); run again") from error
        digest.update(f"{file.name}\0{found.st_size}\0{found.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def numbered_classes(labels: Sequence[int], location: Location) -> list[str]:
    """Return the names "0", "1", ... of classes without names.

    Raises `DataError` if a number below the largest has no image.
    """
    present = set(labels)
    count = max(present) + 1
    empty = next((number for number in range(count) if number not in present), None)
    if empty is not None:
        raise DataError(
            f"{location}: the largest label is {count - 1}, but class {empty} has no image ({count - len(present)} such "
            "classes); number the classes without gaps, or add the missing files"
        )
    return [str(number) for number in range(count)]


def require_classes(classes: Sequence[str], location: Location) -> None:
    """Raise `DataError` if class folders are named like the parts of a data set, or two classes have one name.

    Names with line breaks, tabs and other control characters are refused, too: tables and messages cannot show them.
    """
    odd = next((name for name in classes if re.search(r"[\0-\x1f\x7f]", name)), None)
    if odd is not None:
        raise DataError(f"{location} has the class {odd!r}, whose name holds control characters; rename it")
    name, count = Counter(classes).most_common(1)[0] if classes else ("", 0)
    if count > 1:
        raise DataError(f"{location} has {count} classes named {name!r}; give every class a name of its own")
    if len(classes) > 1 and set(classes) <= PARTS:
        raise DataError(
            f"{location} holds {' and '.join(classes)}, which are parts of a data set, not classes; set "
            "prepare.path to the part to train on and prepare.held_out_path to the other"
        )
