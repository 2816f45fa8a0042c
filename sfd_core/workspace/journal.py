"""The flow runs that this clone executes, on disk: a worker restarts those whose process died, and they resume.

A run's file is locked as long as its process lives. The kernel releases the lock however the process ends, so there is no
heartbeat and no timeout.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from sfd_core.host.locks import is_held, locked
from sfd_core.host.paths import STATE, write_json
from sfd_core.host.supervisor import die_with_parent

FOLDER = STATE / "flow-runs"


@dataclass(frozen=True)
class Broken:
    """A flow run whose process died before its end."""

    flow_run: UUID
    restarts: int
    """How often it was restarted already."""


@contextmanager
def recorded(project: Path, flow_run: UUID | str) -> Iterator[None]:
    """Keep a flow run in the journal while the block runs; this process ends with the worker that started it.

    A run that ends or raises leaves the journal; one that a signal or a kill ends stays in it.
    """
    path = project / FOLDER / f"{flow_run}.json"
    with locked(path.with_suffix(".lock")):
        write_json(path, {"restarts": _read(path)["restarts"], "process": os.getpid()})
        die_with_parent(os.getppid())
        try:
            yield
        except Exception:
            forget(project, flow_run)
            raise
        forget(project, flow_run)


def broken(project: Path) -> list[Broken]:
    """Return the flow runs in the journal whose process died."""
    return [Broken(UUID(path.stem), _read(path)["restarts"]) for path in _entries(project) if not _is_alive(path)]


def alive(project: Path) -> dict[UUID, int]:
    """Return the running flow runs of this clone with their process ids, without those that have not written theirs yet."""
    found = {UUID(path.stem): _read(path)["process"] for path in _entries(project) if _is_alive(path)}
    return {run: process for run, process in found.items() if process}


def count_restart(project: Path, run: Broken) -> None:
    """Count a restart of a run."""
    write_json(project / FOLDER / f"{run.flow_run}.json", {"restarts": run.restarts + 1, "process": 0})


def forget(project: Path, flow_run: UUID | str) -> None:
    """Remove a flow run from the journal."""
    (project / FOLDER / f"{flow_run}.json").unlink(missing_ok=True)
    (project / FOLDER / f"{flow_run}.lock").unlink(missing_ok=True)


def _entries(project: Path) -> list[Path]:
    return sorted((project / FOLDER).glob("*.json"))


def _is_alive(path: Path) -> bool:
    return is_held(path.with_suffix(".lock"))


def _read(path: Path) -> dict[str, int]:
    """Return an entry; one that is damaged or was just removed has no process."""
    try:
        entry: dict[str, int] = json.loads(path.read_text())
    except (OSError, ValueError):
        entry = {}
    return {"restarts": 0, "process": 0} | entry
