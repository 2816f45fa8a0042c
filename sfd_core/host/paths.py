"""Where things lie in a project, and how they are written: whole or not at all."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sfd_core.host.errors import ResourceError

OUTPUTS = Path("outputs")
REPORT = Path("report")
STATE = Path(".sfd")
"""Local state that is no artifact: resumable checkpoints, the embedded MLflow store, feature caches."""


def stage_dir(stage: str, variant: str | None = None) -> Path:
    """Return the output folder of a stage, for a matrix stage that of one variant."""
    return OUTPUTS / stage if variant is None else OUTPUTS / stage / variant


def resume_dir(stage: str, key: str) -> Path:
    """Return the folder of resumable checkpoints of a stage whose inputs, parameters and code hash to `key`."""
    return STATE / "resume" / stage / key


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success fsync it and rename it to `path`, else delete it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        fsync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`; on success it replaces `path`, else it is deleted.

    What an earlier, interrupted write left beside `path` is deleted first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*.partial"):
        shutil.rmtree(leftover)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
    try:
        yield temporary
        _replace_dir(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def resumable_dir(path: Path, work: Path) -> Iterator[Path]:
    """Give a folder in `work` with what an interrupted run left there; then it replaces `path` and `work` goes.

    What that run was just writing with `atomic_path` or `atomic_dir` is deleted.

    Whatever ends the block otherwise, a kill included, leaves `work` as it is, so name it after everything that the result
    depends on (`resume_dir`). Raises `ResourceError` if another process is at work there.
    """
    folder = work / "out"
    folder.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResourceError(f"another process is writing {path} in {work}; wait for it or stop it") from error
        for leftover in list(work.rglob(".*.partial")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        yield folder
        path.parent.mkdir(parents=True, exist_ok=True)
        if folder.stat().st_dev == path.parent.stat().st_dev:
            _replace_dir(folder, path)
        else:
            with atomic_dir(path) as copy:
                shutil.copytree(folder, copy, dirs_exist_ok=True)
        shutil.rmtree(work)


def write_json(path: Path, value: Any) -> None:
    """Write `value`, with dataclasses as objects, as indented JSON, atomically; NaN and infinity are refused."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False, default=asdict) + "\n")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_disk(path: Path, needed_bytes: int, purpose: str) -> None:
    """Raise `ResourceError` unless the disk under `path` has `needed_bytes` free."""
    free = free_disk(path)
    if free < needed_bytes:
        raise ResourceError(
            f"{purpose} needs {needed_bytes / 1e9:.2f} GB under {existing_parent(path)}, but only {free / 1e9:.2f} GB are "
            "free; free some space or move the project to a larger disk"
        )


def free_disk(path: Path) -> int:
    """Return how many bytes are free on the disk that `path` lies on or would lie on."""
    return shutil.disk_usage(existing_parent(path)).free


def existing_parent(path: Path) -> Path:
    """Return `path` or the nearest folder above it that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_dir(temporary: Path, path: Path) -> None:
    """Put the finished folder `temporary` in the place of `path`, which lies on the same disk."""
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
