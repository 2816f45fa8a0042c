"""Kills, cancellations and restarts in the middle of a sweep: nothing is lost and nothing is left running."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from laboratory import WITH_SERVERS, Laboratory, engine_of, flow_project, processes_in
from projects import Project
from waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.xdist_group("flows"), *WITH_SERVERS]

STEPS = 1000
"""Long enough to be interrupted, short enough to be waited for."""
STOP_SECONDS = 15.0
"""From a click to the end of the last training."""


class Sweep:
    """A sweep of one long point in a project of its own kind, asked for and met in the middle of its training."""

    def __init__(self, laboratory: Laboratory, project: Project, name: str, delta_t: float) -> None:
        self.laboratory, self.project, self.name = laboratory, project, name
        changes = {"train.optimisation.steps": STEPS, "train.optimisation.checkpoint_every": 25}
        self.before = self.checkpoints()
        self.asked = {"name": name, "variants": ["sfd"], "grid": {"delta_t": [delta_t]}, "changes": changes}
        self.run = laboratory.ask("sweep/sweep", **self.asked)

    @property
    def worktrees(self) -> Path:
        return self.project.path / ".sfd" / "points"

    def checkpoints(self) -> set[Path]:
        return set(self.worktrees.glob("*/.sfd/resume/train/*/step-*"))

    def training(self) -> list[str]:
        return [command for command in processes_in(self.worktrees) if "stages.train" in command]

    def await_checkpoint(self) -> None:
        wait_until(lambda: self.checkpoints() - self.before, "a checkpoint of the sweep's training")

    def require_complete(self, resumed: bool = True) -> None:
        state = self.laboratory.finish(self.run, 600)
        assert state.is_completed(), state.message
        (row,) = json.loads(self.laboratory.artifact(f"{self.name}-table"))
        assert row["fd_efficientnet_lite0"] > 0
        log = "".join(file.read_text() for file in (self.project.path / ".sfd" / "logs").glob("*.log"))
        assert bool(re.search(r"resumed after step \d+", log)) or not resumed
        assert processes_in(self.worktrees) == []


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
    sweep.await_checkpoint()
    fault(sweep)
    sweep.require_complete(resumed=fault is kill_engine_of_point)


@pytest.mark.parametrize(("number", "delta_t", "ends"), [(signal.SIGKILL, 0.21, 1), (signal.SIGTERM, 0.22, 4)])
def test_a_worker_that_ends_takes_all_with_it_and_the_next_one_goes_on(
    laboratory: Laboratory, tmp_path: Path, number: signal.Signals, delta_t: float, ends: int
) -> None:
    """However often: on a cluster, each job of a worker ends long before a training does."""
    project = flow_project(tmp_path / "project", ["sfd"])
    worker = laboratory.start_worker(project, f"mortal-{number.name}")
    sweep = Sweep(laboratory, project, f"worker-{number.name.lower()}", delta_t)
    for _ in range(ends):
        sweep.await_checkpoint()
        worker.send_signal(number)
        worker.wait(60)
        wait_until(lambda: not processes_in(project.path), "the end of all processes of the worker", 60)
        sweep.before = sweep.checkpoints()
        worker = laboratory.start_worker(project, f"mortal-{number.name}")
    sweep.require_complete()
    laboratory.stop(worker)


def test_a_worker_outlives_a_server_that_is_away_for_long(laboratory: Laboratory, tmp_path: Path) -> None:
    """A client with one retry, as SQLite may be busy: three polls of Prefect's runner fail in seconds instead of minutes."""
    project = flow_project(tmp_path / "project", ["sfd"])
    patient = laboratory.start_worker(project, "patient", PREFECT_CLIENT_MAX_RETRIES="1")
    assert laboratory.server is not None
    os.killpg(laboratory.server.pid, signal.SIGKILL)
    laboratory.server.wait()
    time.sleep(30)
    laboratory.start_server()
    assert patient.poll() is None
    run = laboratory.ask("offset sweep/offset sweep", name="after", delta_t=[0.0], dry_run=True)
    assert laboratory.finish(run, 120).is_completed()
    laboratory.stop(patient)


def cancel(run: Any) -> None:
    subprocess.run([sys.executable, "-m", "prefect", "flow-run", "cancel", str(run)], check=True, timeout=60)


def delete(run: Any) -> None:
    subprocess.run([sys.executable, "-m", "prefect", "flow-run", "delete", str(run)], check=True, timeout=60, input=b"y\n")


def pause(run: Any) -> None:
    """Do as the server's page does."""
    from prefect.client.orchestration import get_client  # noqa: PLC0415
    from prefect.states import Suspended  # noqa: PLC0415

    with get_client(sync_client=True) as client:
        assert client.set_flow_run_state(run, Suspended(timeout_seconds=300)).status == "ACCEPT"


def resume(run: Any) -> None:
    from prefect.client.orchestration import get_client  # noqa: PLC0415

    with get_client(sync_client=True) as client:
        assert client.resume_flow_run(run).status == "ACCEPT"


def is_executed(run: Any) -> bool:
    found = psutil.process_iter(["environ"])
    return any((process.info["environ"] or {}).get("PREFECT__FLOW_RUN_ID") == str(run) for process in found)


def require_stopped(laboratory: Laboratory, project: Project, run: Any, stop: Callable[[Any], None]) -> None:
    """Stop a run in the middle of its training; of a paused one, resume it and see that the training goes on."""

    def trainings() -> list[str]:
        return [command for command in processes_in(project.path) if "sfd_core.stages" in command]

    def resumed() -> int:
        logs = (project.path / ".sfd" / "logs").glob("*.log")
        return sum(file.read_text().count("resumed after step") for file in logs)

    assert trainings()
    before = resumed()
    stop(run)
    started = time.monotonic()
    wait_until(lambda: not trainings(), "the end of the training", STOP_SECONDS)
    print(f"{stop.__name__}: ended in {time.monotonic() - started:.1f} s")
    time.sleep(10)
    assert not trainings()
    if stop is pause:
        wait_until(lambda: laboratory.state(run).name == "Suspended" and not is_executed(run), "the pause", 60)
        resume(run)
        wait_until(lambda: resumed() > before, "the training to go on")


@pytest.mark.parametrize(
    ("what", "stop", "delta_t"),
    [
        ("sweep", cancel, 0.31),
        ("sweep", delete, 0.33),
        ("sweep", pause, 0.34),
        ("point", delete, 0.35),
        ("point", cancel, 0.36),
    ],
)
def test_stopping_a_sweep_or_its_point_ends_the_training_within_seconds(
    laboratory: Laboratory, project: Project, what: str, stop: Callable[[Any], None], delta_t: float
) -> None:
    sweep = Sweep(laboratory, project, f"{what}-{stop.__name__}", delta_t)
    sweep.await_checkpoint()
    run = sweep.run if what == "sweep" else open_point(laboratory)
    if what == "point":
        with pytest.raises(AssertionError, match="ABORT"):  # Prefect pauses no run that another run has started
            pause(run)
    require_stopped(laboratory, project, run, stop)
    if stop is pause:
        delete(sweep.run)
    elif what == "point":
        assert laboratory.finish(sweep.run, 60).is_failed()
        why = "its flow run was deleted" if stop is delete else "Cancelled"
        assert why in laboratory.artifact(f"{sweep.name}-summary")
    elif stop is cancel:
        assert laboratory.finish(sweep.run, 60).is_cancelled()
    wait_until(lambda: not processes_in(sweep.worktrees), "the end of the training", 60)
    wait_until(lambda: all(run.state.is_final() for run in laboratory.points()), "the end of the points", 60)


@pytest.mark.parametrize("stop", [cancel, delete, pause])
def test_stopping_a_reproduction_ends_its_stages_within_seconds(
    laboratory: Laboratory, tmp_path: Path, stop: Callable[[Any], None]
) -> None:
    project = flow_project(tmp_path / "project", ["sfd"])
    values = project.values()
    values["train"]["optimisation"] |= {"steps": STEPS, "checkpoint_every": 25}
    values["studies"] = {}
    (project.path / "params.yaml").write_text(yaml.safe_dump(values))
    worker = laboratory.start_worker(project, f"reproduces-{stop.__name__}")
    run = laboratory.ask("reproduce/reproduce")
    wait_until(lambda: list(project.path.glob(".sfd/resume/train/*/step-*")), "a checkpoint of a training")
    require_stopped(laboratory, project, run, stop)
    laboratory.stop(worker)


def test_cancelling_ends_every_process_of_the_sweep_after_the_server_was_down(laboratory: Laboratory, project: Project) -> None:
    sweep = Sweep(laboratory, project, "cancelled", 0.32)
    sweep.await_checkpoint()
    restart_server(sweep)
    assert sweep.training()
    cancel(sweep.run)
    wait_until(lambda: not processes_in(sweep.worktrees), "the end of the training", 60)
    assert laboratory.finish(sweep.run, 60).is_cancelled()
    wait_until(lambda: all(run.state.is_final() for run in laboratory.points()), "the end of the points", 60)
    Sweep(laboratory, project, "cancelled", 0.32).require_complete()


def test_two_sweeps_and_the_same_one_twice_compute_a_point_once(laboratory: Laboratory, project: Project) -> None:
    before = len(laboratory.points())
    sweeps = [Sweep(laboratory, project, name, 0.41) for name in ("one", "other", "one")]
    for sweep in sweeps:
        sweep.require_complete(resumed=False)
    assert len(laboratory.points()) - before == 1
    for name in ("one", "other"):
        assert "sfd-delta_t-0p41" in project.run("git", "for-each-ref", f"refs/sfd/{name}").stdout
