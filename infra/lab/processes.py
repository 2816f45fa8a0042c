"""Processes, identified by process id and time of creation: an id alone may be given to another process."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import psutil

MARK = "SFD_LAB_SERVER"
"""Environment variable of all processes of a server: which server of which laboratory they belong to."""
AFTER_TERM = 5.0
"""Seconds for the rest of a server's processes to end when asked, after the server itself."""


@dataclass(frozen=True)
class Identity:
    """One process, also after its id was given to another; `pid` is its process group as well."""

    pid: int
    created: float
    """Seconds since 1970."""
    mark: str = ""

    @classmethod
    def of(cls, pid: int, mark: str = "") -> Self:
        """Return the identity of an existing process. Raises `psutil.NoSuchProcess` otherwise."""
        return cls(pid, psutil.Process(pid).create_time(), mark)

    @property
    def runs(self) -> bool:
        """Whether the process exists and is no zombie."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            return process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        return False

    @property
    def memory(self) -> int:
        """Bytes of resident memory of the process and its descendants."""
        total = 0
        with suppress(psutil.Error):
            leader = psutil.Process(self.pid)
            for process in [leader, *leader.children(recursive=True)]:
                with suppress(psutil.Error):
                    total += process.memory_info().rss
        return total

    def group(self) -> list[psutil.Process]:
        """Return the processes of the group, also if its leader is gone."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                is_ours = os.getpgid(process.pid) == self.pid and process.environ().get(MARK, "") == self.mark
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def end(identities: Sequence[Identity], patience: float) -> list[Identity]:
    """End processes and their groups: SIGTERM to the leaders, `patience` seconds later to the rest, at last SIGKILL.

    Returns those that had to be killed.
    """
    for identity in identities:
        if identity.runs:
            _send([psutil.Process(identity.pid)], signal.SIGTERM)
    for _ in ticks(patience):
        if not any(identity.runs for identity in identities):
            break
    killed = [identity for identity in identities if identity.runs]
    left = [process for identity in identities for process in identity.group()]
    for number in (signal.SIGTERM, signal.SIGKILL):
        _send(left, number)
        _, left = psutil.wait_procs(left, timeout=AFTER_TERM)
    return killed


def ticks(seconds: float, pause: float = 0.1) -> Iterator[None]:
    """Yield again and again, at least once, until `seconds` are over."""
    deadline = time.monotonic() + seconds
    yield
    while time.monotonic() < deadline:
        time.sleep(pause)
        yield


def _send(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
