"""Locks of this machine, which the kernel releases when their holders end, however they end."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sfd_core.host.errors import BusyError


@contextmanager
def locked(path: Path, busy: str | None = None, note: str = "") -> Iterator[int]:
    """Wait for the lock of a file and give its descriptor: a child that inherits it holds the lock, too.

    With a message `busy` it does not wait: raises `BusyError` with it if another process holds the lock. The file holds the
    `note` of whoever locked it last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if busy is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(busy) from error
        file.truncate(0)
        file.write(note)
        file.flush()
        yield file.fileno()


@contextmanager
def locked_folder(path: Path, busy: str) -> Iterator[None]:
    """Lock a folder without a file in it. Raises `BusyError` with the message `busy` if another process holds it."""
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(busy) from error
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether some process holds the lock of a file or folder; false for one that does not exist."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
