"""The flow runs that this clone executes, on disk: a worker restarts those whose process died, and they resume.

A run's file is locked as long as its process lives. The kernel releases the lock however the process ends, so there is no
heartbeat and no timeout.
"""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

from sfd_core.host.locks import is_held, locked
from sfd_core.host.paths import STATE, write_json
from sfd_core.host.supervisor import die_with_parent

FOLDER = STATE / "flow-runs"


_HELD: dict[Path, ExitStack] = {}
"""Entries of this process and their locks, which nothing but its end releases."""


def record(project: Path, flow_run: UUID | str) -> None:
    """Keep a flow run of this process in the journal, and end this process with the worker that started it.

    The entry outlives the process: only a worker that knows the run's state on the server removes it. A process that has done
    its work may end before the server has heard of it.
    """
    path = project / FOLDER / f"{flow_run}.json"
    if path in _HELD:  # a flow that has called another one
        return
    _HELD[path] = ExitStack()
    _HELD[path].enter_context(locked(path.with_suffix(".lock")))
    write_json(path, {"process": os.getpid()})
    die_with_parent(os.getppid())


def broken(project: Path) -> list[UUID]:
    """Return the flow runs in the journal whose process is gone."""
    return [UUID(path.stem) for path in _entries(project) if not _is_alive(path)]


def alive(project: Path) -> dict[UUID, int]:
    """Return the running flow runs of this clone with their process ids, without those that have not written theirs yet."""
    found = {UUID(path.stem): _process(path) for path in _entries(project) if _is_alive(path)}
    return {run: process for run, process in found.items() if process}


def clear(project: Path, flow_run: UUID) -> None:
    """Remove the process of a run that is started again: its number may be another program's by now."""
    write_json(project / FOLDER / f"{flow_run}.json", {"process": 0})


def forget(project: Path, flow_run: UUID | str) -> None:
    """Remove a flow run from the journal."""
    (project / FOLDER / f"{flow_run}.json").unlink(missing_ok=True)
    (project / FOLDER / f"{flow_run}.lock").unlink(missing_ok=True)


def _entries(project: Path) -> list[Path]:
    return sorted((project / FOLDER).glob("*.json"))


def _is_alive(path: Path) -> bool:
    return is_held(path.with_suffix(".lock"))


def _process(path: Path) -> int:
    """Return the process of an entry; 0 for one that is damaged or was just removed."""
    try:
        return int(json.loads(path.read_text())["process"])
    except (OSError, ValueError):
        return 0
