"""Where files are in a project, and how to write them atomically."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sfd_core.host.errors import BusyError, ResourceError
from sfd_core.host.locks import is_held, locked_folder

OUTPUTS = Path("outputs")
REPORT = Path("report")
RESULTS = Path("docs") / "results"
"""Committed tables of experiments, which no stage repeats; the report shows them."""
STATE = Path(".sfd")
"""Local state that is not an output: resumable checkpoints, the embedded MLflow store, feature caches."""

_CHECKS: list[Callable[[], None]] = []


def check_before_outputs(check: Callable[[], None]) -> None:
    """Call `check` from now on before outputs or the report are replaced; what it raises leaves them as they are."""
    _CHECKS.append(check)


def stage_dir(stage: str, variant: str | None = None) -> Path:
    """Return the output folder of a stage, or of one variant of a matrix stage."""
    return OUTPUTS / stage if variant is None else OUTPUTS / stage / variant


@contextmanager
def _system_errors() -> Iterator[None]:
    """Raise what the operating system told safetensors, such as a full disk, as the `OSError` that others raise."""
    try:
        yield
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found and type(error).__name__ == "SafetensorError":  # by name: stage `code` runs without the library
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success fsync it and rename it to `path`, otherwise delete it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(descriptor)
    temporary = Path(name)
    try:
        with _system_errors():
            yield temporary
        fsync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield an empty folder next to `path`; on success it replaces `path`, otherwise it is deleted.

    Leftovers of an interrupted earlier write are deleted first. Raises `BusyError` if another process is writing `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another process is writing {path}; wait for it or stop it"
    for leftover in path.parent.glob(f".{path.name}.*.partial"):
        if leftover.name.count(".") == path.name.count(".") + 3:  # not one of `path.more`
            if is_held(leftover):
                raise BusyError(busy)
            shutil.rmtree(leftover)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
    try:
        with locked_folder(temporary, busy):
            with _system_errors():
                yield temporary
            replace_dir(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value`, with dataclasses as objects, as indented JSON, atomically; NaN and infinity are refused."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False, default=asdict) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if the file is missing, cannot be read or holds no object."""
    try:
        loaded = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def sqlite_address(path: Path, driver: str = "sqlite") -> str:
    """Return the address of a SQLite file as SQLAlchemy reads it."""
    return f"{driver}:///{str(path).replace('%', '%25').replace('?', '%3F')}"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link_or_copy(source: str, target: str) -> None:
    """Make `target` a hard link of a file that never changes, or a copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def require_disk(path: Path, needed_bytes: int, purpose: str) -> None:
    """Raise `ResourceError` unless the disk under `path` has `needed_bytes` free."""
    free = free_disk(path)
    if free < needed_bytes:
        raise ResourceError(
            f"{purpose} needs {needed_bytes / 1e9:.2f} GB under {existing_parent(path)}, but only {free / 1e9:.2f} GB are "
            "free; free some space or move the project to a larger disk"
        )


def free_disk(path: Path) -> int:
    """Return the free bytes on the disk of `path`, which need not exist."""
    return shutil.disk_usage(existing_parent(path)).free


def existing_parent(path: Path) -> Path:
    """Return `path` or its nearest parent that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def fsync(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_dir(temporary: Path, path: Path) -> None:
    """Replace `path` with the finished folder `temporary` on the same disk. Raises what a check before outputs raises."""
    if path == REPORT or OUTPUTS in path.parents:
        for check in _CHECKS:
            check()
    for file in temporary.rglob("*"):
        if file.is_file():
            fsync(file)
    temporary.chmod(0o777 & ~_umask())
    if path.exists():
        shutil.rmtree(path)
    temporary.replace(path)
    fsync(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
