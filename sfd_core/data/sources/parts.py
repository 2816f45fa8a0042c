"""The images of an experiment, and which of them are held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from sfd_core.data.sources import twemoji
from sfd_core.data.sources.avatars import avatar_images
from sfd_core.data.sources.crops import Pixels
from sfd_core.data.sources.folder import folder_images
from sfd_core.data.sources.image_set import ImageSet, Location, find_files
from sfd_core.data.sources.parquet import parquet_images
from sfd_core.data.sources.tar import tar_images
from sfd_core.experiment.params import PrepareParams
from sfd_core.host.errors import DataError
from sfd_core.host.seeding import derive_seed

MOST_NAMED = 5


@dataclass(frozen=True)
class Split:
    """Indices into an `ImageSet`."""

    train: list[int]
    held_out: list[int]


@dataclass(frozen=True)
class Part:
    """A subset of the images, in order."""

    images: ImageSet
    indices: Sequence[int]


@dataclass(frozen=True)
class Parts:
    """Training images and held-out images; both have the same classes."""

    train: Part
    held_out: Part


def load_parts(prepare: PrepareParams) -> Parts:
    """List all images that `prepare` describes, split into training and held-out images.

    Raises `DataError` if a class has no training image, held-out images have other classes, or nothing is held out; also
    raises the errors of the sources.
    """
    images = load_images(prepare)
    empty = sorted(set(range(len(images.classes))) - set(images.labels))
    if empty:
        named = ", ".join(images.classes[label] for label in empty[:MOST_NAMED])
        raise DataError(
            f"prepare.path {prepare.path} has no image of {len(empty)} of its {len(images.classes)} classes ({named}); add some"
        )
    if prepare.held_out is not None:
        found = split(images, prepare.held_out, prepare.seed)
        return Parts(Part(images, found.train), Part(images, found.held_out))
    _require_apart(prepare)
    held_out = _load(prepare, Location("prepare.held_out_path", str(prepare.held_out_path)))
    _require_same_classes(images.classes, held_out.classes)
    return Parts(*(Part(one, range(len(one.names))) for one in (images, held_out)))


def _require_apart(prepare: PrepareParams) -> None:
    ours, theirs = (_places(prepare, key) for key in ("path", "held_out_path"))
    around = {parent for place in ours for parent in place.parents}
    if shared := sorted(place for place in theirs if place in around or ours & {place, *place.parents}):
        raise DataError(
            f"prepare.held_out_path {prepare.held_out_path}: {shared[0]} is part of prepare.path {prepare.path} too, so it "
            "would be trained on and held out; name another, or set held_out_path to null and prepare.held_out to a share"
        )


def _places(prepare: PrepareParams, key: str) -> set[Path]:
    """Return the folder of images, or the files that hold them."""
    location = Location(f"prepare.{key}", str(getattr(prepare, key)))
    suffix = {"tar": ".tar", "parquet": ".parquet"}.get(prepare.source)
    return {path.resolve() for path in (find_files(location, suffix) if suffix else [Path(location.path)])}


def load_images(prepare: PrepareParams) -> ImageSet:
    """List the images of `prepare.path`, or those that are drawn.

    Raises `DataError` for unsuitable files and folders, and `ResourceError` if a package is missing.
    """
    return _load(prepare, Location("prepare.path", str(prepare.path)))


def is_held_out(name: str, share: float, seed: int) -> bool:
    """Whether an image is held out. It depends on its name only, so adding images does not move others."""
    return _score(name, seed) < share


def split(images: ImageSet, share: float, seed: int) -> Split:
    """Split by name hash; the image with the highest hash of each class is always used for training.

    Raises `DataError` if nothing would be held out.
    """
    always_train: dict[int, tuple[float, int]] = {}
    for index, (name, label) in enumerate(zip(images.names, images.labels, strict=True)):
        always_train[label] = max(always_train.get(label, (-1.0, -1)), (_score(name, seed), index))
    kept = {index for _, index in always_train.values()}
    held_out = [index for index, name in enumerate(images.names) if index not in kept and is_held_out(name, share, seed)]
    if not held_out:
        raise DataError(
            f"none of the {len(images.names)} images is held out with prepare.held_out {share} and prepare.seed {seed}; "
            "every class keeps one image for training: add images, raise the fraction or change the seed"
        )
    away = set(held_out)
    return Split(train=[index for index in range(len(images.names)) if index not in away], held_out=held_out)


def _score(name: str, seed: int) -> float:
    return derive_seed(seed, "held-out", name) / 2**63


def _load(prepare: PrepareParams, location: Location) -> ImageSet:
    if prepare.source == "twemoji":
        return _twemoji_images(prepare)
    if prepare.styles is not None and prepare.per_style is not None:
        return avatar_images(prepare.styles, prepare.per_style, prepare.resolution)
    if prepare.source == "folder":
        return folder_images(location, prepare.resolution)
    if prepare.source == "tar":
        return tar_images(location, cast(Literal["folder", "stored"], prepare.labels), prepare.resolution)
    return parquet_images(location, prepare.resolution)


def _require_same_classes(train: list[str], held_out: list[str]) -> None:
    if train == held_out:
        return
    missing = [name for name in train if name not in set(held_out)]
    unknown = [name for name in held_out if name not in set(train)]
    found = [
        f"{len(names)} {what} ({', '.join(names[:MOST_NAMED])})"
        for names, what in ((missing, "are missing there"), (unknown, "exist only there"))
        if names
    ]
    raise DataError(
        f"prepare.path has {len(train)} classes and prepare.held_out_path {len(held_out)}: "
        f"{' and '.join(found) or 'they are the same in another order'}; both need the same classes"
    )


def _twemoji_images(prepare: PrepareParams) -> ImageSet:
    emoji = twemoji.list_emoji()
    named = [twemoji.class_of(one, cast(Literal["category", "subcategory"], prepare.labels)) for one in emoji]
    classes = list(dict.fromkeys(named))

    def render(index: int, copy: int) -> Pixels:
        name = emoji[index].name
        return twemoji.render(name, prepare.resolution, twemoji.placement(name, copy, prepare.seed))

    labels = [classes.index(name) for name in named]
    return ImageSet([one.name for one in emoji], labels, classes, render, twemoji.versions)
