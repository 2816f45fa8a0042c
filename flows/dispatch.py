"""Runs of points: started by Prefect's deployment `point`, one flow run a point, on any free worker, and awaited here.

Two sweeps that want the same point share one run: a run's idempotency key is the point's key and its last run that has ended
before, and the server accepts each key only once.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.artifacts import Artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling

from flows.point import record_key
from sfd_core.experiment.grid import Point
from sfd_core.experiment.pruning import Losses
from sfd_core.host.errors import ConfigError

DEPLOYMENT = "point/point"
POLL_SECONDS = 2.0
CRASH_PATIENCE = 120.0
"""Seconds for a worker to restart a crashed run before another worker gets it."""
ATTEMPTS = 3
LONG_RUN = timedelta(minutes=10)
"""A run that crashes later is no attempt: its machine ended, as each job of a cluster does, and the next one resumes it."""
MOST_WAITING = 20
"""Runs of a sweep that wait for a worker: as many as start in one look, and few enough to be cancelled in seconds."""
OPEN = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED]
"""States of runs that can be cancelled."""
PAGE = 200
"""Most runs that the server returns at once."""


@dataclass(frozen=True)
class Request:
    """A point to compute."""

    point: Point
    targets: Sequence[str]
    """DVC stages."""
    label: str = ""
    """Begins the name of the flow run."""
    finished: str | None = None
    """Lock file of a finished point: only its run in MLflow is sent."""
    highest: Losses = field(default_factory=dict)
    """Validation losses above which it stops early."""

    @property
    def tags(self) -> list[str]:
        """Equal for requests that one flow run can serve."""
        return [f"point:{self.point.key}", f"targets:{'+'.join(self.targets) if self.finished is None else 'run'}"]


@dataclass(frozen=True)
class Outcome:
    """How a point's run ended."""

    point: Point
    targets: Sequence[str]
    record: dict[str, Any] | None
    """What `flows.point` recorded; None if the run failed."""
    message: str = ""
    """Why it failed."""

    @property
    def is_pruned(self) -> bool:
        """Whether the point was stopped because it was behind others."""
        return self.record is not None and "pruned" in self.record


@dataclass
class _Wait:
    request: Request
    run: UUID
    attempts: int = 1
    crashed_at: float | None = None
    taken: bool = False
    """A worker has it."""


class Dispatcher:
    """The points of one sweep that are running.

    Raises `ConfigError` for job variables if no work pool runs points: a worker of this project knows none.
    """

    def __init__(
        self, sweep: UUID | str, commit: str, report: Callable[[str], None], job_variables: Mapping[str, Any] = {}
    ) -> None:
        self._tag, self._commit, self._report = sweep_tag(sweep), commit, report
        self._job_variables = dict(job_variables)
        if self._job_variables:
            _require_pool(self._job_variables)
        self._waits: list[_Wait] = []
        self._queue: deque[Request] = deque()

    def submit(self, request: Request) -> None:
        """Take a point, whose run `ended` starts, or shares if one has not ended."""
        self._queue.append(request)

    def ended(self) -> list[Outcome]:
        """Wait until at least one point has ended and return all that have; empty once none is left."""
        found: list[Outcome] = []
        while (self._waits or self._queue) and not found:
            self._fill()
            time.sleep(POLL_SECONDS)
            try:
                runs = read_runs([wait.run for wait in self._waits])
            except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                self._report(f"Prefect's server does not answer ({error}); the points go on, trying again")
                continue
            outcomes = [(wait, self._outcome(wait, runs.get(wait.run))) for wait in self._waits]
            self._waits = [wait for wait, outcome in outcomes if outcome is None]
            found = [outcome for _, outcome in outcomes if outcome is not None]
        return found

    def _fill(self) -> None:
        while self._queue and sum(not wait.taken for wait in self._waits) < MOST_WAITING:
            self._waits.append(_Wait(self._queue[0], self._start(self._queue[0])))
            self._queue.popleft()

    def _start(self, request: Request) -> UUID:
        with get_client(sync_client=True) as client:
            runs = _runs(client, tags={"all_": request.tags})
            run = next((run for run in runs if not (_is_final(run) or _is_cancelling(run))), None)
            last = max(runs, key=lambda run: str(run.created)).id if runs else "first"
            if run is None:
                parameters = {
                    "key": request.point.key,
                    "commit": self._commit,
                    "values": dict(request.point.values),
                    "targets": list(request.targets),
                    "finished": request.finished,
                    "inputs": dict(request.point.inputs) if request.finished is None else None,
                    "highest_losses": {str(step): loss for step, loss in request.highest.items()} or None,
                }
                started = run_deployment(
                    DEPLOYMENT,
                    parameters=parameters,
                    flow_run_name=f"{request.label}{request.point.name}",
                    timeout=0,
                    tags=[*request.tags, self._tag],
                    idempotency_key="-".join([*request.tags, str(last)]),
                    job_variables=self._job_variables,
                )
                run = cast("FlowRun", started)
            if self._tag not in run.tags:
                client.update_flow_run(run.id, tags=[*run.tags, self._tag])
        return run.id

    def _outcome(self, wait: _Wait, run: FlowRun | None) -> Outcome | None:
        point, targets = wait.request.point, wait.request.targets
        if run is None:
            return Outcome(point, targets, None, "its flow run was deleted")
        state = run.state
        if state is None or not state.is_final():
            wait.crashed_at, wait.taken = None, not _is_waiting(run)
            return None
        if state.type == StateType.COMPLETED:
            record = {} if wait.request.finished is not None else read_record(point, targets)
            outcome = Outcome(point, targets, record, "it left no record")
            if not outcome.is_pruned or wait.request.highest:
                return outcome
            wait.run = self._start(wait.request)  # a search stopped the run that this sweep shared with it
            return None
        counts = run.total_run_time < LONG_RUN
        if state.type != StateType.CRASHED or (counts and wait.attempts >= ATTEMPTS):
            return Outcome(point, targets, None, f"{state.name}: {state.message or 'no reason given'}")
        self._handle_crash(wait, counts)
        return None

    def _handle_crash(self, wait: _Wait, counts: bool) -> None:
        """Give the run's worker time to restart it, then start it on any worker."""
        now = time.monotonic()
        if wait.crashed_at is None:
            wait.crashed_at = now
            self._report(f"{wait.request.point.name} crashed; its worker restarts it and it resumes")
        elif now - wait.crashed_at > CRASH_PATIENCE:
            wait.attempts, wait.crashed_at, wait.run = wait.attempts + counts, None, self._start(wait.request)


def _require_pool(job_variables: dict[str, Any]) -> None:
    with get_client(sync_client=True) as client:
        if client.read_deployment_by_name(DEPLOYMENT).work_pool_name is None:
            raise ConfigError(
                f"job_variables {job_variables}: no work pool runs points here, the worker's limit chooses their GPUs; "
                "leave job_variables empty, or deploy to a pool (infra/README.md)"
            )


def read_runs(wanted: Sequence[UUID]) -> dict[UUID, FlowRun]:
    """Return those of the `wanted` flow runs that the server has."""
    pages = [wanted[start : start + PAGE] for start in range(0, len(wanted), PAGE)]
    with get_client(sync_client=True) as client:
        return {run.id: run for page in pages for run in _runs(client, id={"any_": page})}


def is_replaced(run: FlowRun) -> bool:
    """Whether a sweep has started another run of the same point meanwhile, which has not ended."""
    tags = [tag for tag in run.tags if tag.startswith(("point:", "targets:"))]
    with get_client(sync_client=True) as client:
        return bool(tags) and any(other.id != run.id and not _is_final(other) for other in _runs(client, tags={"all_": tags}))


def sweep_tag(sweep: UUID | str) -> str:
    """Return the tag of the point runs that a sweep's run waits for."""
    return f"sweep:{sweep}"


def cancel_points(sweep: UUID | str) -> None:
    """Cancel the runs that only this sweep waits for; those that another one shares go on."""
    tag = sweep_tag(sweep)
    with get_client(sync_client=True) as client:
        # what was cancelled has another state and what is shared loses the tag, so the next page is what is left
        while runs := _runs(client, tags={"all_": [tag]}, state={"type": {"any_": OPEN}}):
            for run in sorted(runs, key=_is_waiting):  # what computes takes seconds to end
                others = [other for other in run.tags if other.startswith("sweep:") and other != tag]
                if any(_is_running(client, other) for other in others):
                    client.update_flow_run(run.id, tags=[other for other in run.tags if other != tag])
                else:
                    client.set_flow_run_state(run.id, Cancelled() if _is_waiting(run) else Cancelling(), force=True)


def _runs(client: SyncPrefectClient, **criteria: Any) -> list[FlowRun]:
    return client.read_flow_runs(flow_run_filter=FlowRunFilter(**criteria), limit=PAGE)


def read_record(point: Point, targets: Sequence[str]) -> dict[str, Any] | None:
    """Return what the last run of a point recorded; None if there was none, or it failed."""
    found = cast("Artifact | None", Artifact.get(record_key(point.key, targets)))
    return None if found is None else dict(json.loads(str(found.data)))


def _is_final(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()


def _is_waiting(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_scheduled()


def _is_cancelling(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_cancelling()


def _is_running(client: SyncPrefectClient, tag: str) -> bool:
    """Whether the sweep of a tag has not ended."""
    return any(not _is_final(run) for run in _runs(client, id={"any_": [tag.removeprefix("sweep:")]}))
