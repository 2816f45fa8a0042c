"""A folder of class folders as a data set (ImageNet's layout)."""

from pathlib import Path

from sfd_core.data.sources.crops import Pixels, centre_crop, read_image
from sfd_core.data.sources.image_set import PARTS, ImageSet, Location, require_classes, stamp_files
from sfd_core.host.errors import DataError
from sfd_core.host.files import files_below


def folder_images(location: Location, resolution: int) -> ImageSet:
    """List the images of a folder; the first folder level is the class.

    Raises `DataError` if the folder is missing, empty, has an empty class or files outside class folders, or holds
    a part of a data set instead of its classes.
    """
    root = Path(location.path)
    if not root.is_dir():
        raise DataError(f"{location} is no folder; give a folder that holds one folder per class")
    classes, names, labels = _class_folders(root, location), [], []
    require_classes(classes, location)
    for label, name in enumerate(classes):
        found = files_below(root / name)
        if not found:
            raise DataError(f"class folder {root / name} is empty; add images or remove the folder")
        names += [file.relative_to(root).as_posix() for file in found]
        labels += [label] * len(found)
    if len(classes) == 1 and classes[0] in PARTS and any(name.count("/") > 1 for name in names):
        raise DataError(
            f"{location} holds only {classes[0]}, a part of a data set, whose folders would all be one class; "
            f"set it to {root / classes[0]}"
        )

    def render(index: int, _: int) -> Pixels:
        return centre_crop(read_image(root / names[index]), resolution)

    return ImageSet(names, labels, classes, render, lambda: stamp_files(root / name for name in names))


def _class_folders(root: Path, location: Location) -> list[str]:
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    folders = [entry.name for entry in entries if entry.is_dir()]
    stray = [entry.name for entry in entries if not entry.is_dir()]
    if not entries:
        raise DataError(f"{location} is empty; put one folder of images per class into it")
    if stray or not folders:
        raise DataError(
            f"{location} holds the file {stray[0]!r} ({len(stray)} in total) outside class folders; "
            "put every image into the folder of its class"
        )
    return folders
