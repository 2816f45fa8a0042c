"""Tar files as a data set, read in place: members are listed once and then read by offset.

Two layouts are supported. With `labels: folder`, members lie in class folders, below any common folders
(`imagenet/train/<class>/...`), or each tar file is a class, also inside one tar file as in `ILSVRC2012_img_train.tar`. With
`labels: stored`, files are WebDataset shards: the members of a sample share a key (their path up to the first dot of the file
name); an image is told by what follows its last dot. A sample is an image and its class number, as text in `<key>.cls` or under
`label` or `cls` in `<key>.json`. Hidden files are skipped.
"""

import io
import json
import os
import sys
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from sfd_core.data.sources.crops import Pixels, centre_crop, decode_image
from sfd_core.data.sources.image_set import ImageSet, Location, find_files, numbered_classes, require_classes, stamp_files
from sfd_core.host.errors import DataError

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"})
"""Suffixes of the image in a WebDataset sample; members other than image and label are ignored."""
LABEL_KEYS = ("label", "cls")
"""Keys of the class number in a sample's `.json`."""
DOTS = "keep one, or replace the dots in their names: a key ends at its first dot"
BLOCK = 512
MOST_ZEROS = 2 * BLOCK + tarfile.RECORDSIZE
"""What ends an archive: two blocks, and the rest of a record."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar file: name, offset from the start of the outermost file, and size."""

    name: str
    offset: int
    size: int


@dataclass(slots=True)
class _Sample:
    image: Member | None = None
    labels: dict[str, Member] = field(default_factory=dict)
    suffixes: list[str] = field(default_factory=list)


class _Images:
    """Name, tar file, offset and size of every image; 20 bytes per image plus the name."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.names: list[str] = []
        self._file, self._offset, self._size = array("l"), array("q"), array("q")

    def add(self, file: int, member: Member) -> None:
        """Append an image; with several tar files, its name contains the tar file."""
        self.names.append(member.name if len(self.files) == 1 else f"{self.files[file].stem}/{member.name}")
        self._file.append(file)
        self._offset.append(member.offset)
        self._size.append(member.size)

    def render(self, resolution: int, index: int, _: int) -> Pixels:
        path = self.files[self._file[index]]
        data = _read(path, self._offset[index], self._size[index])
        return centre_crop(decode_image(io.BytesIO(data), f"{self.names[index]} in {path}"), resolution)


def tar_images(location: Location, labels: Literal["folder", "stored"], resolution: int) -> ImageSet:
    """List the images of one tar file, of all tar files in a folder, or of all that match a pattern.

    Raises `DataError` for files that are not tar files, compressed or truncated; for links and duplicate names; for images
    outside class folders and folders of parts instead of classes; for an image without a label or a label without an image;
    and for invalid class numbers.
    """
    files = find_files(location, ".tar")
    images = _Images(files)
    if labels == "folder":
        folders = _list_folders(images)
        classes, numbers = _classes_of(folders, images, location)
    else:
        numbers = _list_samples(images)
        classes = numbered_classes(numbers, location) if numbers else []
    if not images.names:
        raise DataError(f"{location} holds no image; with prepare.labels {labels}, tar files need {_required_layout(labels)}")
    return ImageSet(images.names, numbers, classes, partial(images.render, resolution), lambda: stamp_files(files))


def members(path: Path) -> Iterator[Member]:
    """Yield the regular files of a tar file and of tar files inside it, without reading their content."""
    seen: set[str] = set()
    try:
        with path.open("rb") as file:
            for member in _members(file, 0, PurePosixPath()):
                if member.name in seen:
                    raise DataError(f"{path} holds {member.name} twice; create the file again from its source")
                seen.add(member.name)
                yield member
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{path} is no complete, uncompressed tar file ({error}); download it again or decompress it"
        ) from error


def _members(file: IO[bytes], start: int, folder: PurePosixPath) -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined] # otherwise it keeps every header in memory
            path = folder / info.name.lstrip("/")
            if info.isdir() or any(part.startswith(".") for part in path.parts):
                continue
            if not info.isreg() or info.issparse():
                raise tarfile.ReadError(
                    f"{info.name} is a link or a special file; create the archive again with links followed"
                )
            if path.suffix == ".tar":
                inner = archive.extractfile(info)
                assert inner is not None  # noqa: S101 # None only for special files
                yield from _members(inner, start + info.offset_data, path.with_suffix(""))
            else:
                yield Member(path.as_posix(), start + info.offset_data, info.size)
        # An archive ends with zero blocks; tarfile also accepts a truncated header as the end.
        file.seek(archive.offset)
        if file.read(BLOCK) != bytes(BLOCK):
            raise tarfile.ReadError("its end is missing")
        zeros = BLOCK
        while block := file.read(1 << 20):
            zeros += len(block)
            if any(block):
                raise tarfile.ReadError("another archive follows its end, as `cat` leaves it; name the archives one by one")
        if zeros > MOST_ZEROS and start == 0:
            print(
                f"warning: {file.name} ends with {zeros:,} zero bytes, as an unfinished download does; its last members may be "
                "missing: compare it with its source",
                file=sys.stderr,
            )


def _list_folders(images: _Images) -> list[str]:
    """Add every member as an image and return its folder; equal folders share one string."""
    folders: list[str] = []
    known: dict[str, str] = {}
    for number, path in enumerate(images.files):
        for member in members(path):
            images.add(number, member)
            folder = member.name.rpartition("/")[0]
            folders.append(known.setdefault(folder, folder))
    if len(images.files) > 1 and set(known) == {""}:
        return [name.partition("/")[0] for name in images.names]
    return folders


def _classes_of(folders: list[str], images: _Images, location: Location) -> tuple[list[str], list[int]]:
    """Return classes and labels; the class is the first folder level at which members differ.

    Raises `DataError` if a file above the class folders would make all of them one class.
    """
    stray = next((index for index, folder in enumerate(folders) if not folder), None)
    if stray is not None:
        raise DataError(
            f"{location}: {images.names[stray]} is in no class folder; if members have .cls or .json files, set "
            "prepare.labels to stored"
        )
    paths = {folder: folder.split("/") for folder in set(folders)}
    shortest = min((len(parts) for parts in paths.values()), default=1)
    depth = 0
    while depth < shortest - 1 and len({parts[depth] for parts in paths.values()}) == 1:
        depth += 1
    class_of = {folder: parts[depth] for folder, parts in paths.items()}
    classes = sorted(set(class_of.values()))
    if len(classes) == 1 and len(paths) > 1:
        above = min(folders, key=lambda folder: len(paths[folder]))
        raise DataError(
            f"{location}: {images.names[folders.index(above)]} lies above folders such as {max(folders, key=len)}, so all "
            f"images would be of the class {classes[0]!r}; leave it out, or put all images of a class in one folder"
        )
    require_classes(classes, location)
    number_of = {name: number for number, name in enumerate(classes)}
    return classes, [number_of[class_of[folder]] for folder in folders]


def _list_samples(images: _Images) -> list[int]:
    """Add the image of every WebDataset sample and return the class numbers."""
    numbers: list[int] = []
    for file, path in enumerate(images.files):
        passed: list[str] = []
        for key, sample in _samples(path).items():
            if sample.image is None and not sample.labels:
                passed.append(f"{key}.{sample.suffixes[0]}")
                continue
            if sample.image is None:
                raise DataError(
                    f"{path}: sample {key} has a label but no image (its members end with {', '.join(sample.suffixes)}; "
                    f"images end with {', '.join(sorted(IMAGE_SUFFIXES))})"
                )
            numbers.append(_label(path, key, sample))
            images.add(file, sample.image)
        if passed:
            print(f"skipped: {len(passed)} keys of {path} without image and label, such as {passed[0]}", file=sys.stderr)
    return numbers


def _samples(path: Path) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}
    for member in members(path):
        folder, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        sample = samples.setdefault(key, _Sample())
        sample.suffixes.append(suffix)
        if suffix in ("cls", "json"):
            sample.labels[suffix] = member
        elif suffix.rpartition(".")[2].lower() in IMAGE_SUFFIXES:
            if sample.image is not None:
                raise DataError(f"{path}: sample {key} has two images, {sample.image.name} and {member.name}; {DOTS}")
            sample.image = member
    return samples


def _label(path: Path, key: str, sample: _Sample) -> int:
    if not sample.labels:
        raise DataError(
            f"{path}: image {key} has no label (its members end with {', '.join(sample.suffixes)}); WebDataset samples need a "
            ".cls or .json member; for class folders set prepare.labels to folder"
        )
    member = sample.labels.get("cls") or sample.labels["json"]
    text = _read(path, member.offset, member.size).decode(errors="replace").strip()
    try:
        value: Any = int(text) if member.name.endswith(".cls") else _class_number(json.loads(text))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: {member.name} holds no class number ({error}); create the shard again") from error
    if value < 0:
        raise DataError(f"{path}: {member.name} holds {value}, which is no class (is this a test set?)")
    return int(value)


def _class_number(values: Any) -> int:
    found = [values[key] for key in LABEL_KEYS if key in values]
    if not found or type(found[0]) is not int:
        raise ValueError(f"it has keys {', '.join(values)}, but no integer under {' or '.join(LABEL_KEYS)}")
    return int(found[0])


def _read(path: Path, offset: int, size: int) -> bytes:
    """Return `size` bytes at `offset`; thread-safe."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); run again to list it anew") from error
    if len(data) != size:
        raise DataError(f"{path} became shorter after it was listed; run again")
    return data


def _required_layout(labels: str) -> str:
    return "images in class folders" if labels == "folder" else "an image and a .cls or .json member in every sample"
