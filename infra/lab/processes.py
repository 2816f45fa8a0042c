"""Processes by what cannot be mistaken: a process id together with the time at which the process began."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import psutil

MARK = "SFD_LAB_SERVER"
"""Environment variable of everything that a server starts: which server of which laboratory it belongs to."""
AFTER_TERM = 5.0
"""Seconds that what a server leaves behind has to end when asked."""


@dataclass(frozen=True)
class Identity:
    """One process, also after its id was given to another; `pid` is its process group as well."""

    pid: int
    created: float
    """Seconds since 1970."""
    mark: str = ""

    @classmethod
    def of(cls, pid: int, mark: str = "") -> Self:
        """Return the identity of a process that is there. Raises `psutil.NoSuchProcess` otherwise."""
        return cls(pid, psutil.Process(pid).create_time(), mark)

    @property
    def runs(self) -> bool:
        """Whether the process is there and not merely waiting to be reaped."""
        try:
            process = psutil.Process(self.pid)
            return process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    @property
    def memory(self) -> int:
        """Bytes of resident memory of the process and all that it started."""
        return sum(_resident(process) for process in self._family()) if self.runs else 0

    def group(self) -> list[psutil.Process]:
        """Return the processes of the group, also if its leader is gone."""
        return [process for process in psutil.process_iter() if self._is_member(process)]

    def _family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            leader = psutil.Process(self.pid)
            return [leader, *leader.children(recursive=True)]
        return []

    def _is_member(self, process: psutil.Process) -> bool:
        try:
            if os.getpgid(process.pid) != self.pid or process.status() == psutil.STATUS_ZOMBIE:
                return False
            return (
                process.create_time() == self.created if process.pid == self.pid else process.environ().get(MARK) == self.mark
            )
        except (ProcessLookupError, psutil.Error, OSError):
            return False


def end(identities: Sequence[Identity], patience: float) -> list[Identity]:
    """End processes and their groups: ask the leaders, wait up to `patience` seconds, then ask and at last kill what is left.

    Returns those that had to be killed.
    """
    for identity in identities:
        if identity.runs:
            _signal(identity.pid, signal.SIGTERM)
    wait_for_end(identities, patience)
    left = [process for identity in identities for process in identity.group()]
    killed = [identity for identity in identities if identity.runs]
    for process in left:
        _signal(process.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(left, timeout=AFTER_TERM)
    for process in alive:
        _signal(process.pid, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=AFTER_TERM)
    return killed


def wait_for_end(identities: Sequence[Identity], seconds: float) -> bool:
    """Wait until none of the processes runs; returns whether that came before `seconds` were over."""
    return any(not any(identity.runs for identity in identities) for _ in ticks(seconds))


def ticks(seconds: float, pause: float = 0.1) -> Iterator[None]:
    """Yield again and again, at least once, until `seconds` are over."""
    deadline = time.monotonic() + seconds
    while True:
        yield
        if time.monotonic() >= deadline:
            return
        time.sleep(pause)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
