"""Runs the deployments in this clone: takes runs from the server, restarts those that died and ends those that were stopped.

There is no work pool: each worker asks the server for runs, takes points only while it has free slots (its concurrency limit
`gpu@NAME` or `cpu@NAME`, created here and changed in the UI), and Prefect gives each run to one worker. All processes of a
worker end with it; the next worker of the same clone restarts the runs, which resume.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.flows import Flow
from prefect.runner import Runner
from prefect.runner import _scheduled_run_poller as poller
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import AwaitingRetry, Cancelled, Suspended
from prefect.types.entrypoint import EntrypointType

from flows import limits
from flows.dispatch import cancel_points, is_replaced, read_runs
from flows.pipeline import reproduce
from flows.point import point
from flows.studies import guidance_sweep, path_sweep
from flows.sweep import offset_sweep, search, seeds_sweep, size_sweep, sweep
from sfd_core.host import machine
from sfd_core.host.addresses import PREFECT_EXAMPLE, in_a_line, public, require_server
from sfd_core.host.errors import ConfigError, ResourceError
from sfd_core.workspace import git, journal
from sfd_core.workspace.dvc import remote_of

QUERY_SECONDS = 2.0
WATCH_SECONDS = 2.0
SECONDS_TO_START = 4.0
"""Prefect's runners have set their signal handlers by then."""
RESTARTS = 3
"""How often a worker restarts a run whose process died alone; one that died with its worker always goes on."""
PENDING_SECONDS = 180.0
"""A worker starts a run that it took within seconds, from a slow disk within a minute or two."""
SECONDS_TO_RECORD = 10.0
"""A run that has begun is in the journal by then."""
CANCEL_SECONDS = 6.0
"""Prefect's runner ends a cancelled run within seconds."""
END_SECONDS = 40.0
FAILED_POLLS = 10_000
"""After so many in sequence a worker ends itself: each takes a minute."""
AT_START = {PREFECT_API_REQUEST_TIMEOUT: 20.0, PREFECT_CLIENT_MAX_RETRIES: 0}
"""A server that hangs is told after seconds; otherwise Prefect's client waits for six minutes."""
CLIENT_RETRIES = "8"
"""Of a flow run's requests, each wait twice the one before: a server may be down for eight minutes."""
DEPLOYED: dict[str, Flow[..., Any]] = {
    "reproduce": reproduce,
    "sweep": sweep,
    "offset sweep": offset_sweep,
    "model-size sweep": size_sweep,
    "guidance sweep": guidance_sweep,
    "path sweep": path_sweep,
    "seeds": seeds_sweep,
    "search": search,
}
"""Deployments that people start, by name; `point/point` is started by sweeps."""


def serve(points_only: bool) -> None:
    """Serve all deployments, or points of sweeps only, until SIGTERM or SIGINT, which end every run at its next checkpoint.

    Raises `ConfigError` without a server's address, and `ResourceError` if there is no usable server.
    """
    project = Path.cwd()
    git.base_commit(project)
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", CLIENT_RETRIES)
    logging.getLogger("prefect.runner").setLevel(logging.WARNING)
    slots = _make_limit()
    if remote_of(project) is None:
        print("warning: this clone has no DVC remote: it shares no results with others", file=sys.stderr)
    asyncio.run(_serve(project, slots, {} if points_only else DEPLOYED))


def _make_limit() -> int:
    uri = PREFECT_API_URL.value()
    if not uri:
        raise ConfigError(f"PREFECT_API_URL is not set, so there is no server to ask for runs; set it to {PREFECT_EXAMPLE}")
    require_server("PREFECT_API_URL", uri, PREFECT_EXAMPLE)
    try:
        with temporary_settings(AT_START):
            return limits.make_limit()
    except Exception as error:
        raise ResourceError(
            f"Prefect at {public(uri)}: {in_a_line(error, uri)}; start it (`make up`) or set PREFECT_API_URL right"
        ) from error


async def _serve(project: Path, slots: int, served: dict[str, Flow[..., Any]]) -> None:
    # a runner ends itself, and its trainings, after three polls that failed: a server that restarts would cost days
    poller.critical_service_loop = partial(poller.critical_service_loop, consecutive=FAILED_POLLS)  # type: ignore[attr-defined]
    coordinator = Runner(f"sweeps@{machine.worker_name()}", QUERY_SECONDS, limit=None, pause_on_shutdown=False)
    trainer = Runner(f"points@{machine.worker_name()}", QUERY_SECONDS, limit=slots, pause_on_shutdown=False)
    for runner, name, flow in [*((coordinator, *item) for item in served.items()), (trainer, "point", point)]:
        await runner.aadd_deployment(await _deployment(name, flow))
    await asyncio.gather(coordinator.start(), trainer.start(), _watch(project), _handle_signals())


async def _deployment(name: str, flow: Flow[..., Any]) -> RunnerDeployment:
    """Return a deployment tagged with its module: out of any work pool, with the schedules that people gave it in the UI."""
    made = await flow.ato_deployment(name, tags=[tag_of(flow)], entrypoint_type=EntrypointType.MODULE_PATH)
    made.model_fields_set.add("work_pool_name")  # only what is set is sent: none, or the pool would go on taking runs
    made.model_fields_set.discard("schedules")  # an empty list would delete them
    return made


def tag_of(flow: Flow[..., Any]) -> str:
    """Return the tag of a flow's deployment: the name of its module."""
    return flow.fn.__module__.rpartition(".")[2]


async def _handle_signals() -> None:
    """Take SIGTERM over from the runners, which would mark its runs as cancelled, so that nobody restarts them."""
    await asyncio.sleep(SECONDS_TO_START)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _end())
    print(f"worker {machine.worker_name()} is ready, limit {machine.limit_name()}", file=sys.stderr, flush=True)


def _end() -> None:
    """End every flow run of this worker, wait for it, and exit."""
    running = psutil.Process().children()
    for process in running:
        process.terminate()
    psutil.wait_procs(running, timeout=END_SECONDS)
    os._exit(0)


async def _watch(project: Path) -> None:
    """Restart runs that died, end those that were stopped and show the used slots, as long as the worker lives."""
    used, checked, restarts = -1, 0.0, Counter[UUID]()
    while True:
        try:
            async with get_client() as client:
                for run in await asyncio.to_thread(journal.broken, project):
                    await _restart(client, project, run, restarts)
                if time.monotonic() - checked > PENDING_SECONDS / 2:
                    await _restart_pending(client)
                    checked = time.monotonic()
                await _end_stopped(project)
            count = machine.taken()
            if count != used:
                await asyncio.to_thread(limits.show_used, count)
                used = count
        except (httpx.HTTPError, PrefectHTTPStatusError, ObjectNotFound, OSError) as error:
            print(f"watching runs: {error}", file=sys.stderr)
        await asyncio.sleep(WATCH_SECONDS)


async def _restart(client: PrefectClient, project: Path, run: UUID, restarts: Counter[UUID]) -> None:
    """Schedule a run whose process is gone, unless it was stopped or died too often; a paused one can be resumed."""
    try:
        found = await client.read_flow_run(run)
    except ObjectNotFound:
        await asyncio.to_thread(cancel_points, run)
        journal.forget(project, run)
        return
    state = found.state
    if state is not None and (stopped := await _stopped_as(client, run, state)):
        await client.set_flow_run_state(run, stopped, force=True)
        state = stopped
    if state is None or state.is_scheduled() or state.is_pending() or state.is_paused():
        return
    if state.is_running() and _age(found) < SECONDS_TO_RECORD:
        return
    if state.is_cancelled():
        await asyncio.to_thread(cancel_points, run)
    elif (
        (not state.is_final() or state.is_crashed())
        and restarts[run] < RESTARTS
        and not await asyncio.to_thread(is_replaced, found)
    ):
        restarts[run] += 1
        journal.clear(project, run)
        await _schedule(client, run, "its process died; it is restarted and resumes")
        return
    journal.forget(project, run)


async def _stopped_as(client: PrefectClient, run: UUID, state: State[Any]) -> State[Any] | None:
    """Return the state that a run should have which was stopped, and whose process is gone; None if it is right.

    A process that is asked to end sets the state to crashed, whatever it was before.
    """
    before = state
    if state.is_crashed():
        history = sorted(await client.read_flow_run_states(run), key=lambda past: past.timestamp)
        before = next((past for past in reversed(history) if not past.is_crashed()), state)
    if before.is_cancelling():
        return Cancelled()
    if before is state or not _is_stopped(before):
        return None
    return Suspended() if before.is_paused() else before


async def _end_stopped(project: Path) -> None:
    """End runs that were deleted, paused or cancelled, and their points.

    Prefect's runner ends cancelled ones, too, but no longer after its server was down.
    """
    executed = await asyncio.to_thread(journal.alive, project)
    runs = await asyncio.to_thread(read_runs, list(executed)) if executed else {}
    for key, process in executed.items():
        run = runs.get(key)
        if run is None or (_is_stopped(run.state) and (run.state.is_paused() or _age(run) > _patience(run.state))):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
            await asyncio.to_thread(cancel_points, key)


def _is_stopped(state: State[Any] | None) -> TypeGuard[State[Any]]:
    """Whether a person has stopped a run that its process still computes."""
    return state is not None and (state.is_paused() or state.is_cancelling() or (state.is_final() and not state.is_crashed()))


def _patience(state: State[Any]) -> float:
    """Return the seconds in which a process ends by itself: one that has reported its end is about to."""
    return END_SECONDS if state.is_completed() or state.is_failed() else CANCEL_SECONDS


async def _restart_pending(client: PrefectClient) -> None:
    """Schedule runs again that a worker took and never started: it died before they were in its journal."""
    ours = FlowFilter(name={"any_": [flow.name for flow in (*DEPLOYED.values(), point)]})
    pending = FlowRunFilter(state={"type": {"any_": [StateType.PENDING]}})
    for run in await client.read_flow_runs(flow_filter=ours, flow_run_filter=pending, limit=200):
        if _age(run) > PENDING_SECONDS:
            await _schedule(client, run.id, "the worker that took it never started it")


async def _schedule(client: PrefectClient, run: UUID, why: str) -> None:
    await client.set_flow_run_state(run, AwaitingRetry(message=why), force=True)


def _age(run: FlowRun) -> float:
    """Return the seconds since a run's state changed last."""
    return 0.0 if run.state is None else (datetime.now(UTC) - run.state.timestamp).total_seconds()
