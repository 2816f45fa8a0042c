"""Points handed to whichever worker is free, and waited for: by Prefect's deployment `point`, one flow run a point.

Two sweeps that want the same point wait for the same run: a run's idempotency key is the point's key and how many runs of it
have ended before, which the server takes only once.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.artifacts import Artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling

from flows.point import record_key
from sfd_core.experiment.grid import Point

DEPLOYMENT = "point/point"
POLL_SECONDS = 2.0
CRASH_PATIENCE = 120.0
"""Seconds that a worker has to come back and take up a crashed run before another worker is asked."""
ATTEMPTS = 3


@dataclass(frozen=True)
class Outcome:
    """How a point's run ended."""

    point: Point
    record: dict[str, Any] | None
    """What `flows.point` recorded; None if it did not end well."""
    message: str
    """Why not."""


@dataclass
class _Wait:
    point: Point
    targets: Sequence[str]
    run: UUID
    finished: Mapping[str, str] | None = None
    """Of a point whose run in MLflow alone is wanted."""
    attempts: int = 1
    crashed_at: float | None = None


class Dispatcher:
    """The points of one sweep that are under way."""

    def __init__(self, sweep: UUID | str, commit: str, told: Callable[[str], None]) -> None:
        self._tag, self._commit, self._told = sweep_tag(sweep), commit, told
        self._waits: list[_Wait] = []

    def submit(self, point: Point, targets: Sequence[str], label: str = "", finished: Mapping[str, str] | None = None) -> None:
        """Ask for a point, or join a run of it that is under way; of a `finished` one only its run in MLflow is sent."""
        run = self._ask(point, targets, label, finished)
        self._waits.append(_Wait(point, targets, run, finished))

    def ended(self) -> list[tuple[Sequence[str], Outcome]]:
        """Wait until at least one point has ended and return the targets and outcomes of all that have."""
        found: list[tuple[Sequence[str], Outcome]] = []
        while self._waits and not found:
            time.sleep(POLL_SECONDS)
            try:
                runs = self._read()
            except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                self._told(f"Prefect's server does not answer ({error}); the points go on, asking again")
                continue
            for wait in list(self._waits):
                outcome = self._outcome(wait, runs.get(wait.run))
                if outcome is not None:
                    self._waits.remove(wait)
                    found.append((wait.targets, outcome))
        return found

    def _ask(self, point: Point, targets: Sequence[str], label: str = "", finished: Mapping[str, str] | None = None) -> UUID:
        tags = [f"point:{point.key}", f"targets:{'+'.join(targets) if finished is None else 'run'}"]
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=tags)), limit=200)
            open_runs = [run for run in runs if run.state is None or not run.state.is_final()]
            if open_runs:
                run = open_runs[0]
            else:
                asked = run_deployment(
                    DEPLOYMENT,
                    parameters={
                        "key": point.key,
                        "commit": self._commit,
                        "values": dict(point.values),
                        "targets": list(targets),
                        "finished": finished and dict(finished),
                    },
                    flow_run_name=f"{label}{point.name}",
                    timeout=0,
                    tags=[*tags, self._tag],
                    idempotency_key="-".join([*tags, str(len(runs))]),
                )
                run = cast("FlowRun", asked)
            if self._tag not in run.tags:
                client.update_flow_run(run.id, tags=[*run.tags, self._tag])
        return run.id

    def _read(self) -> dict[UUID, FlowRun]:
        with get_client(sync_client=True) as client:
            wanted = [wait.run for wait in self._waits]
            found: dict[UUID, FlowRun] = {}
            for start in range(0, len(wanted), 200):
                filtered = FlowRunFilter(id=FlowRunFilterId(any_=wanted[start : start + 200]))
                found |= {run.id: run for run in client.read_flow_runs(flow_run_filter=filtered, limit=200)}
            return found

    def _outcome(self, wait: _Wait, run: FlowRun | None) -> Outcome | None:
        if run is None:
            return Outcome(wait.point, None, "its flow run was deleted")
        state = run.state
        if state is None or not state.is_final():
            wait.crashed_at = None
            return None
        if state.type == StateType.COMPLETED and wait.finished is not None:
            return Outcome(wait.point, {}, "")
        if state.type == StateType.COMPLETED:
            record = cast("Artifact | None", Artifact.get(record_key(wait.point.key, wait.targets)))
            return Outcome(wait.point, None if record is None else json.loads(str(record.data)), "it left no record")
        if state.type != StateType.CRASHED or wait.attempts >= ATTEMPTS:
            return Outcome(wait.point, None, f"{state.name}: {state.message or 'no reason given'}")
        self._handle_crash(wait)
        return None

    def _handle_crash(self, wait: _Wait) -> None:
        """Give the run's worker time to take it up again, then ask any worker."""
        now = time.monotonic()
        if wait.crashed_at is None:
            wait.crashed_at = now
            self._told(f"{wait.point.name} crashed; its worker takes it up again where it stood")
        elif now - wait.crashed_at > CRASH_PATIENCE:
            wait.attempts, wait.crashed_at = wait.attempts + 1, None
            wait.run = self._ask(wait.point, wait.targets, finished=wait.finished)


def sweep_tag(sweep: UUID | str) -> str:
    """Return the tag of the point runs that a sweep's run waits for."""
    return f"sweep:{sweep}"


def cancel_points(sweep: UUID | str) -> None:
    """Cancel the runs that only this sweep waits for; those that another one shares go on."""
    tag = sweep_tag(sweep)
    wanted = FlowRunFilter(tags=FlowRunFilterTags(all_=[tag]))
    with get_client(sync_client=True) as client:
        # the tag is taken off, so what is left comes with the next page
        while runs := client.read_flow_runs(flow_run_filter=wanted, limit=200):
            for run in runs:
                others = [other for other in run.tags if other.startswith("sweep:") and other != tag]
                client.update_flow_run(run.id, tags=[other for other in run.tags if other != tag])
                ended = run.state is not None and run.state.is_final()
                if not ended and not any(_waits(client, other) for other in others):
                    waiting = run.state is not None and run.state.is_scheduled()
                    client.set_flow_run_state(run.id, Cancelled() if waiting else Cancelling(), force=True)


def _waits(client: SyncPrefectClient, tag: str) -> bool:
    """Whether the sweep of a tag is still under way."""
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[UUID(tag.removeprefix("sweep:"))])), limit=1
    )
    return any(run.state is None or not run.state.is_final() for run in runs)
