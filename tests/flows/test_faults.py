"""Kills, cancellations and restarts in the middle of a sweep: nothing is lost and nothing is left running."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from laboratory import Laboratory, await_training, flow_project, processes_in, wait_until
from projects import Project

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.xdist_group("flows"),
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

STEPS = 1000
"""Long enough to be interrupted, short enough to be waited for."""


class Sweep:
    """A sweep of one long point in a project of its own kind, asked for and met in the middle of its training."""

    def __init__(self, laboratory: Laboratory, project: Project, name: str, delta_t: float) -> None:
        self.laboratory, self.project, self.name = laboratory, project, name
        changes = {"train.optimisation.steps": STEPS, "train.optimisation.checkpoint_every": 25}
        self.asked = {"name": name, "variants": ["sfd"], "grid": {"delta_t": [delta_t]}, "changes": changes}
        self.run = laboratory.ask("sweep/sweep", **self.asked)

    @property
    def worktrees(self) -> Path:
        return self.project.path / ".sfd" / "points"

    def training(self) -> list[str]:
        return [command for command in processes_in(self.worktrees) if "stages.train" in command]

    def require_complete(self, resumed: bool = True) -> None:
        state = self.laboratory.finish(self.run, 600)
        assert state.is_completed(), state.message
        (row,) = json.loads(self.laboratory.artifact(f"{self.name}-table"))
        assert row["fd_efficientnet_lite0"] > 0
        log = "".join(file.read_text() for file in (self.project.path / ".sfd" / "logs").glob("*.log"))
        assert bool(re.search(r"resumed after step \d+", log)) or not resumed
        assert processes_in(self.worktrees) == []


def engine_of(run: Any) -> psutil.Process:
    """Return the process that executes a flow run."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT__FLOW_RUN_ID") == str(run) and "prefect.engine" in " ".join(process.cmdline()):
                return process
        except psutil.Error:
            continue
    raise AssertionError(f"no process executes {run}")


def open_point(laboratory: Laboratory) -> Any:
    return wait_until(lambda: [run.id for run in laboratory.points() if run.state.is_running()], "a point that runs")[-1]


def kill_engine_of_point(sweep: Sweep) -> None:
    engine_of(open_point(sweep.laboratory)).kill()


def kill_engine_of_sweep(sweep: Sweep) -> None:
    engine_of(sweep.run).kill()


def restart_server(sweep: Sweep) -> None:
    server = sweep.laboratory.server
    assert server is not None
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    time.sleep(5)
    sweep.laboratory.start_server()


@pytest.mark.parametrize(
    ("fault", "delta_t"), [(kill_engine_of_point, 0.11), (kill_engine_of_sweep, 0.12), (restart_server, 0.13)]
)
def test_a_sweep_goes_on_by_itself_after(
    laboratory: Laboratory, project: Project, fault: Callable[[Sweep], None], delta_t: float
) -> None:
    sweep = Sweep(laboratory, project, fault.__name__.replace("_", "-"), delta_t)
    await_training(sweep.project)
    fault(sweep)
    sweep.require_complete(resumed=fault is kill_engine_of_point)


@pytest.mark.parametrize(("number", "delta_t"), [(signal.SIGKILL, 0.21), (signal.SIGTERM, 0.22)])
def test_a_worker_that_ends_takes_all_with_it_and_the_next_one_goes_on(
    laboratory: Laboratory, tmp_path: Path, number: signal.Signals, delta_t: float
) -> None:
    project = flow_project(tmp_path / "project", ["sfd"])
    worker = laboratory.start_worker(project, f"mortal-{number.name}")
    sweep = Sweep(laboratory, project, f"worker-{number.name.lower()}", delta_t)
    await_training(sweep.project)
    worker.send_signal(number)
    worker.wait(60)
    wait_until(lambda: not processes_in(project.path), "the end of all processes of the worker", 60)
    again = laboratory.start_worker(project, f"mortal-{number.name}")
    sweep.require_complete()
    laboratory.stop(again)


@pytest.mark.parametrize(("restarted", "delta_t"), [(False, 0.31), (True, 0.32)])
def test_cancelling_ends_every_process_of_the_sweep(
    laboratory: Laboratory, project: Project, restarted: bool, delta_t: float
) -> None:
    from prefect.client.orchestration import get_client  # noqa: PLC0415
    from prefect.states import Cancelling  # noqa: PLC0415

    sweep = Sweep(laboratory, project, "cancelled", delta_t)
    await_training(sweep.project)
    if restarted:
        restart_server(sweep)
    assert sweep.training()
    started = time.monotonic()
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(sweep.run, Cancelling())
    wait_until(lambda: not processes_in(sweep.worktrees), "the end of the training", 60)
    print(f"cancelled in {time.monotonic() - started:.1f} s")
    assert laboratory.finish(sweep.run, 60).is_cancelled()
    wait_until(lambda: all(run.state.is_final() for run in laboratory.points()), "the end of the points", 60)
    again = Sweep(laboratory, project, "cancelled", delta_t)
    again.require_complete()


def test_two_sweeps_and_the_same_one_twice_compute_a_point_once(laboratory: Laboratory, project: Project) -> None:
    before = len(laboratory.points())
    sweeps = [Sweep(laboratory, project, name, 0.41) for name in ("one", "other", "one")]
    for sweep in sweeps:
        sweep.require_complete(resumed=False)
    assert len(laboratory.points()) - before == 1
    for name in ("one", "other"):
        assert "sfd-delta_t-0p41" in project.run("git", "for-each-ref", f"refs/sfd/{name}").stdout
