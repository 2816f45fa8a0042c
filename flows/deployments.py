"""Serves every deployment from this clone: the command that a worker of the laboratory runs, on one machine or on many.

    python -m flows.deployments [--points]

One worker serves all deployments; further ones, of other clones and machines, take points only: a sweep is planned by the
clone that it was started for, and keeps its refs there.

No work pool: each worker asks the server for runs of these deployments, takes points only while it has places for trainings
(its concurrency limit `gpu@NAME` or `cpu@NAME`, made here and changed in the UI), and Prefect gives each run to one worker
only. Everything a worker runs ends with it, and is started again where it stood by the next worker of the same clone.

    PREFECT_API_URL        the server; required
    MLFLOW_TRACKING_URI    where runs go; the clone's own .sfd/mlflow.db if it is not set
    AWS_*                  credentials and endpoint of the DVC remote, if it is S3
    SFD_WORKER             what the worker is called; two on one host need two names
    SFD_GPUS_PER_POINT     GPUs that one training takes
    SFD_GIT_REMOTE         git remote that gets the refs of finished points
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.flows import Flow
from prefect.runner import Runner
from prefect.settings import PREFECT_API_URL
from prefect.states import AwaitingRetry, Cancelled
from prefect.types.entrypoint import EntrypointType

from flows import limits
from flows.dispatch import cancel_points
from flows.guidance import guidance_sweep
from flows.pipeline import reproduce
from flows.point import point
from flows.sweep import offset_sweep, seeds_sweep, size_sweep, sweep
from sfd_core.host import machine
from sfd_core.host.errors import ConfigError, ResourceError, exits_cleanly
from sfd_core.workspace import git, journal
from sfd_core.workspace.programs import remote_of

QUERY_SECONDS = 2.0
TEND_SECONDS = 4.0
RESTARTS = 3
"""How often a run whose process died is started again by itself; whoever wants more starts it in the UI."""
PENDING_SECONDS = 60.0
"""A worker begins what it took within seconds."""
CANCEL_SECONDS = 6.0
"""Prefect's runner ends a cancelled run within seconds."""
END_SECONDS = 40.0
CLIENT_RETRIES = "8"
"""Of a flow run's requests, each wait twice the one before: a server may be away for eight minutes."""
DEPLOYED: dict[str, Flow[..., Any]] = {
    "reproduce": reproduce,
    "sweep": sweep,
    "offset sweep": offset_sweep,
    "model-size sweep": size_sweep,
    "guidance sweep": guidance_sweep,
    "seeds": seeds_sweep,
}
"""Deployments that people start, by name; `point/point` is started by sweeps."""


@exits_cleanly
def main() -> None:
    """Serve all deployments until SIGTERM or SIGINT, which ends everything that runs at its next checkpoint."""
    parser = argparse.ArgumentParser(description="Run what the laboratory's Prefect server asks for, in this clone.")
    parser.add_argument("--points", action="store_true", help="take points of sweeps that another worker plans, nothing else")
    served = {} if parser.parse_args().points else DEPLOYED
    project = Path.cwd()
    git.base_commit(project)
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", CLIENT_RETRIES)
    logging.getLogger("prefect.runner").setLevel(logging.WARNING)
    places = _places()
    if remote_of(project) is None:
        print("warning: this clone has no DVC remote: it shares nothing that it computes with others", file=sys.stderr)
    asyncio.run(_serve(project, places, served))


def _places() -> int:
    """Make this worker's limit. Raises `ConfigError` or `ResourceError` for a server that is not named or does not answer."""
    if not PREFECT_API_URL.value():
        raise ConfigError("PREFECT_API_URL is not set, so there is no server to serve; set it to http://HOST:PORT/api")
    try:
        return limits.make_limit()
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        raise ResourceError(
            f"Prefect's server at {PREFECT_API_URL.value()} does not answer ({error}); start it first"
        ) from error


async def _serve(project: Path, places: int, served: dict[str, Flow[..., Any]]) -> None:
    coordinator = Runner(f"sweeps@{machine.worker_name()}", QUERY_SECONDS, limit=None, pause_on_shutdown=False)
    trainer = Runner(f"points@{machine.worker_name()}", QUERY_SECONDS, limit=places, pause_on_shutdown=False)
    for name, flow in served.items():
        await coordinator.aadd_deployment(await _deployment(flow, name))
    await trainer.aadd_deployment(await _deployment(point, "point"))
    await asyncio.gather(coordinator.start(), trainer.start(), _tend(project), _handle_signals())


async def _deployment(flow: Flow[..., Any], name: str) -> RunnerDeployment:
    return await flow.ato_deployment(name, entrypoint_type=EntrypointType.MODULE_PATH)


async def _handle_signals() -> None:
    """Take SIGTERM over from the runners, which would mark what runs as cancelled instead of to be continued."""
    await asyncio.sleep(TEND_SECONDS)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _end())
    print(f"worker {machine.worker_name()} is ready, limit {machine.limit_name()}", file=sys.stderr, flush=True)


def _end() -> None:
    """End every flow run of this worker, wait for it, and leave."""
    running = psutil.Process().children()
    for process in running:
        process.terminate()
    psutil.wait_procs(running, timeout=END_SECONDS)
    os._exit(0)


async def _tend(project: Path) -> None:
    """Start again what died, and show how many places are taken, for as long as the worker lives."""
    used, looked = -1, 0.0
    while True:
        try:
            for run in await asyncio.to_thread(journal.broken, project):
                await _take_up(project, run)
            if time.monotonic() - looked > PENDING_SECONDS / 2:
                await _take_up_lost()
                looked = time.monotonic()
            await _end_cancelled(project)
            count = machine.taken()
            if count != used:
                await asyncio.to_thread(limits.show_used, count)
                used = count
        except (httpx.HTTPError, PrefectHTTPStatusError, ObjectNotFound, OSError) as error:
            print(f"tending to runs: {error}", file=sys.stderr)
        await asyncio.sleep(TEND_SECONDS)


async def _take_up(project: Path, run: journal.Broken) -> None:
    """Schedule a run whose process is gone again, unless it was cancelled, ended, or died too often."""
    async with get_client() as client:
        try:
            state = (await client.read_flow_run(run.flow_run)).state
        except ObjectNotFound:
            state = None
        if state is not None and state.is_scheduled():
            return
        if state is not None and await _is_unwanted(client, run.flow_run, state):
            await asyncio.to_thread(cancel_points, run.flow_run)
            if not state.is_cancelled():
                await client.set_flow_run_state(run.flow_run, Cancelled(), force=True)
        elif state is not None and not (state.is_completed() or state.is_failed()) and run.restarts < RESTARTS:
            journal.count_restart(project, run)
            message = "its process ended before it did; it continues where it stood"
            await client.set_flow_run_state(run.flow_run, AwaitingRetry(message=message), force=True)
            return
        journal.forget(project, run.flow_run)


async def _is_unwanted(client: PrefectClient, run: UUID, state: State[Any]) -> bool:
    """Whether somebody cancelled a run whose process is gone: asked to end, it calls itself crashed."""
    if not state.is_crashed():
        return state.is_cancelling() or state.is_cancelled()
    history = sorted(await client.read_flow_run_states(run), key=lambda past: past.timestamp)
    before = [past for past in history if not past.is_crashed()]
    return bool(before) and before[-1].is_cancelling()


async def _end_cancelled(project: Path) -> None:
    """End what is being cancelled: Prefect's runner does so, too, but no longer after its server was away."""
    executed = await asyncio.to_thread(journal.alive, project)
    if not executed:
        return
    async with get_client() as client:
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=list(executed)))
        for run in await client.read_flow_runs(flow_run_filter=wanted, limit=200):
            process = executed[run.id]
            if process and run.state is not None and run.state.is_cancelling() and _age(run.state) > CANCEL_SECONDS:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)


def _age(state: State[Any]) -> float:
    return (datetime.now(UTC) - state.timestamp).total_seconds()


async def _take_up_lost() -> None:
    """Schedule runs again that a worker took and never began: it died in between, before they were in its journal."""
    names = FlowFilterName(any_=[flow.name for flow in (*DEPLOYED.values(), point)])
    pending = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING]))
    async with get_client() as client:
        runs = await client.read_flow_runs(
            flow_filter=FlowFilter(name=names), flow_run_filter=FlowRunFilter(state=pending), limit=200
        )
        for run in runs:
            if run.state is not None and _age(run.state) > PENDING_SECONDS:
                message = "the worker that took it never began it"
                await client.set_flow_run_state(run.id, AwaitingRetry(message=message), force=True)


if __name__ == "__main__":
    main()
