"""The files of a folder that other people own."""

import os
import re
from pathlib import Path

from sfd_core.host.errors import DataError

SHAPES_RESULTS = True

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_path(name: str, project: Path = Path()) -> bool:
    """Whether weights are a path instead of a repository OWNER/NAME on a hub: they, or the folder above them, are there."""
    path = project / name
    return not HUB_NAME.fullmatch(name) or path.exists() or path.parent.is_dir()


def files_below(folder: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """Return all files of a folder and its sub-folders, sorted; hidden ones are skipped, links are followed.

    Raises `DataError` for a folder that cannot be read, a link to a folder above it, and what is no file, such as a pipe.
    """
    found: list[Path] = []
    try:
        real = folder.resolve()
        if real in above:
            raise DataError(f"{folder} is a link to a folder that holds it; remove the link")
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found += files_below(Path(entry), (*above, real))
            elif entry.is_file():
                found.append(Path(entry))
            else:
                kind = "a broken link" if entry.is_symlink() else "a pipe, a socket or a device"
                raise DataError(f"{entry.path} is {kind} instead of a file; remove it")
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be read ({error.strerror}); make it readable or remove it"
        ) from error
    return sorted(found)
