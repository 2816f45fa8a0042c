"""The images of an experiment: their names, classes and pixels, one at a time, and which of them are held out."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sfd_core.config import PrepareParams
from sfd_core.data import twemoji
from sfd_core.data.crops import Pixels, centre_crop, read_image
from sfd_core.errors import DataError
from sfd_core.seeding import derive_seed


@dataclass(frozen=True)
class ImageSet:
    """Images that are listed, not yet read; memory grows with their number, not with their size."""

    names: list[str]
    """Unique and stable: an emoji's code points, or a path below the root."""
    labels: list[int]
    classes: list[str]
    render: Callable[[int, int], Pixels]
    """(index, copy) -> (resolution, resolution, 3) uint8; raises `DataError` for a file that is no readable image."""


@dataclass(frozen=True)
class Split:
    """Indices into an `ImageSet`."""

    train: list[int]
    held_out: list[int]


def load_images(prepare: PrepareParams) -> ImageSet:
    """List the images that `prepare` describes.

    Raises `DataError` if the folder is missing, empty, has an empty class or files outside class folders, and
    `ResourceError` if a package is missing.
    """
    return _twemoji_images(prepare) if prepare.source == "twemoji" else _folder_images(prepare)


def is_held_out(name: str, share: float, seed: int) -> bool:
    """Return whether an image is held out; it depends on its own name only, so adding images moves no other."""
    return _score(name, seed) < share


def split(images: ImageSet, share: float, seed: int) -> Split:
    """Split by name hash; the image of each class that hashes highest always trains, so that no class is without one.

    Raises `DataError` if nothing at all would be held out.
    """
    always_train: dict[int, tuple[float, int]] = {}
    for index, (name, label) in enumerate(zip(images.names, images.labels, strict=True)):
        always_train[label] = max(always_train.get(label, (-1.0, -1)), (_score(name, seed), index))
    kept = {index for _, index in always_train.values()}
    held_out = [index for index, name in enumerate(images.names) if index not in kept and is_held_out(name, share, seed)]
    if not held_out:
        raise DataError(
            f"none of the {len(images.names)} images is held out with prepare.held_out {share} and prepare.seed {seed}; "
            "every class keeps one image for training, so add images, raise the share or change the seed"
        )
    away = set(held_out)
    return Split(train=[index for index in range(len(images.names)) if index not in away], held_out=held_out)


def _score(name: str, seed: int) -> float:
    return derive_seed(seed, "held-out", name) / 2**63


def _twemoji_images(prepare: PrepareParams) -> ImageSet:
    if prepare.labels == "folder":
        raise DataError("prepare.labels folder does not exist for source twemoji; set it to category or subcategory")
    emoji = twemoji.list_emoji()
    named = [twemoji.class_of(one, prepare.labels) for one in emoji]
    classes = list(dict.fromkeys(named))

    def render(index: int, copy: int) -> Pixels:
        name = emoji[index].name
        return twemoji.render(name, prepare.resolution, twemoji.placement(name, copy, prepare.seed))

    return ImageSet([one.name for one in emoji], [classes.index(name) for name in named], classes, render)


def _folder_images(prepare: PrepareParams) -> ImageSet:
    root = Path(prepare.path or "")
    if not root.is_dir():
        raise DataError(f"prepare.path {prepare.path} is no folder; give the folder that holds one folder per class")
    classes, names, labels = _class_folders(root), [], []
    for label, name in enumerate(classes):
        found = _files_below(root / name)
        if not found:
            raise DataError(f"class folder {root / name} holds no file; add images or remove the folder")
        names += [file.relative_to(root).as_posix() for file in found]
        labels += [label] * len(found)
    return ImageSet(names, labels, classes, functools.partial(_render_file, root, names, prepare.resolution))


def _class_folders(root: Path) -> list[str]:
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    folders = [entry.name for entry in entries if entry.is_dir()]
    stray = [entry.name for entry in entries if not entry.is_dir()]
    if not entries:
        raise DataError(f"prepare.path {root} is empty; put one folder of images per class into it")
    if stray or not folders:
        raise DataError(
            f"prepare.path {root} holds the file {stray[0]!r} ({len(stray)} in all) beside or instead of class folders; "
            "every image must lie in the folder of its class"
        )
    return folders


def _files_below(folder: Path) -> list[Path]:
    """Return all files in a class folder and its sub-folders, sorted; names that begin with a dot are no data."""
    found: list[Path] = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent) / name for name in files if not name.startswith(".")]
    return sorted(found)


def _render_file(root: Path, names: list[str], resolution: int, index: int, copy: int) -> Pixels:
    if copy != 0:
        raise DataError(f"copy {copy} of {names[index]} was asked for, but files have one rendering; set prepare.copies to 1")
    return centre_crop(read_image(root / names[index]), resolution)
