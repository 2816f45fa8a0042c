"""Runs of points that crash, on a real server without a worker: the test lets each live for some time."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from laboratory import WITH_SERVERS, Laboratory
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Crashed, Running
from projects import Project
from waiting import wait_until

from flows import dispatch
from sfd_core.experiment.grid import Point

pytestmark = [pytest.mark.xdist_group("flows"), *WITH_SERVERS]

Outcomes = Future[list[dispatch.Outcome]]
LONG = 1.5


@pytest.fixture
def awaited(laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Point, Outcomes]]:
    """A point whose run no worker takes, and its outcome."""
    laboratory.stop_others(Project(tmp_path / "none"))
    with get_client(sync_client=True) as client:
        client.create_deployment(client.create_flow_from_name("point"), name="point")
    monkeypatch.setattr(dispatch, "CRASH_PATIENCE", 0.0)
    monkeypatch.setattr(dispatch, "LONG_RUN", timedelta(seconds=LONG))
    monkeypatch.setattr(dispatch, "POLL_SECONDS", 0.1)
    point = Point("crashing", "sfd", {}, {}, key=uuid4().hex, shared="")
    dispatcher = dispatch.Dispatcher(uuid4(), "commit", print)
    dispatcher.submit(dispatch.Request(point, [point.target]))
    with ThreadPoolExecutor(1) as pool:
        yield point, pool.submit(dispatcher.ended)


def runs_of(laboratory: Laboratory, point: Point) -> list[FlowRun]:
    return [run for run in laboratory.points() if run.parameters["key"] == point.key]


def crash(laboratory: Laboratory, point: Point, lived: float = 0.0) -> None:
    """Let the newest run of a point crash once it has lived for so many seconds."""

    def waiting() -> list[UUID]:
        return [run.id for run in runs_of(laboratory, point) if run.state.is_scheduled()]

    (run,) = wait_until(waiting, "a run of the point", 60)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Running(), force=True)
        time.sleep(lived)
        client.set_flow_run_state(run, Crashed(message="no longer there"), force=True)


def test_a_crashed_run_is_replaced_while_its_next_one_has_not_ended(
    laboratory: Laboratory, awaited: tuple[Point, Outcomes]
) -> None:
    point, outcomes = awaited
    crash(laboratory, point)
    wait_until(lambda: len(runs_of(laboratory, point)) == 2, "another run of the point", 60)
    first, second = runs_of(laboratory, point)
    assert dispatch.is_replaced(first)
    assert not dispatch.is_replaced(second)
    with get_client(sync_client=True) as client:
        client.delete_flow_run(first.id)  # its number is no longer counted, and the key of the third run is still a new one
    crash(laboratory, point)
    crash(laboratory, point)
    assert outcomes.result(60)[0].message == "Crashed: no longer there"


def test_a_run_that_soon_crashes_is_tried_three_times(laboratory: Laboratory, awaited: tuple[Point, Outcomes]) -> None:
    point, outcomes = awaited
    for _ in range(dispatch.ATTEMPTS):
        assert not outcomes.done()
        crash(laboratory, point)
    (outcome,) = outcomes.result(60)
    assert outcome.record is None
    assert outcome.message == "Crashed: no longer there"


def test_a_run_whose_machines_end_after_hours_is_started_however_often(
    laboratory: Laboratory, awaited: tuple[Point, Outcomes]
) -> None:
    point, outcomes = awaited
    for _ in range(2 * dispatch.ATTEMPTS):
        crash(laboratory, point, lived=2 * LONG)
        assert not outcomes.done()
    for _ in range(dispatch.ATTEMPTS):
        crash(laboratory, point)
    assert outcomes.result(60)[0].message == "Crashed: no longer there"
