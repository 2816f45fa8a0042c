"""What a laboratory costs beside the trainings: its start, each point, and what a second worker brings.

The points are tiny, so that nearly all of their time is what the flows, DVC, MLflow and S3 take.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest
from laboratory import NEEDS_S3, WITH_SERVERS, WholeLaboratory, engine_of, prefect_variables, records_of, whole_project
from projects import Project
from pytest_benchmark.fixture import BenchmarkFixture
from waiting import wait_until

from sfd_core.experiment.code import pipeline_code
from sfd_core.experiment.grid import CURRENT, Space, base_values, plan_points

pytestmark = [pytest.mark.bench, NEEDS_S3, pytest.mark.timeout(3600), *WITH_SERVERS]

POINTS = 8
STEPS = 100
CHANGES = {"train.optimisation.steps": STEPS, "train.optimisation.checkpoint_every": STEPS}
FINISHED, LARGEST = 100, 1000
WORKERS, SLEEPING = 8, 600.0


@pytest.fixture
def laboratory(tmp_path: Path) -> Iterator[WholeLaboratory]:
    """A laboratory that is not up yet; it is stopped in the end."""
    made = WholeLaboratory(whole_project(tmp_path / "first", ["sfd"]), variables={"SFD_WORKER": "first"})
    with prefect_variables(made.prefect):
        yield made
    made.run("down", check=False)


def test_a_sweep_by_one_worker_and_by_two(laboratory: WholeLaboratory, tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    started = time.monotonic()
    laboratory.run("up")
    ready = time.monotonic() - started
    laboratory.await_deployments()
    serving = time.monotonic() - started
    memory = memory_of(laboratory)
    sweep(laboratory, "warm", [0.5])
    records, one = sweep(laboratory, "one", [number / 100 for number in range(POINTS)])
    with ExitStack() as stack:
        stack.callback(join(laboratory, tmp_path / "second").terminate)
        _, joined = sweep(laboratory, "joined", [0.61, 0.62])
        two: list[float] = []
        others = [0.1 + number / 100 for number in range(POINTS)]
        benchmark.pedantic(lambda: two.append(sweep(laboratory, "two", others)[1]), rounds=1)
    _, again = sweep(laboratory, "one", [number / 100 for number in range(POINTS)])
    overheads = [record["seconds"] - record["training"]["seconds"] for record in records]
    workers = {record["worker"] for record in records_of(laboratory.project, "two")}
    assert len(workers) == 2
    benchmark.extra_info.update(
        points=POINTS, ready=ready, serving=serving, memory=memory, one_worker=one, two_workers=two[0], again=again,
        overhead=median(overheads), training=median(record["training"]["seconds"] for record in records), joined=joined,
    )  # fmt: skip


def test_workers_that_wait(laboratory: WholeLaboratory, tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    """As on machines of their own: each training sleeps, so that workers hardly take the processors from one another."""
    project = laboratory.project
    pipeline = project.path / "dvc.yaml"
    stages, training = pipeline.read_text(), "python -m sfd_core.stages.train "
    assert stages.count(training) == 1
    pipeline.write_text(stages.replace(training, f"sleep {SLEEPING:.0f} && {training}"))
    project.commit("trainings sleep first")
    laboratory.run("up")
    laboratory.await_deployments()
    _, alone = sweep(laboratory, "alone", [0.01, 0.02])
    with ExitStack() as stack:
        for number in range(1, WORKERS):
            stack.callback(join(laboratory, tmp_path / f"worker-{number}").terminate)
        offsets, together = [0.1 + number / 100 for number in range(WORKERS)], list[float]()
        benchmark.pedantic(lambda: together.append(sweep(laboratory, "together", offsets)[1]), rounds=1)
    assert len({record["worker"] for record in records_of(project, "together")}) == WORKERS
    benchmark.extra_info.update(workers=WORKERS, sleeping=SLEEPING, alone=alone / 2, together=together[0] / WORKERS)


def test_large_sweeps(laboratory: WholeLaboratory, benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    project = laboratory.project
    laboratory.run("up")
    laboratory.await_deployments()
    sweep(laboratory, "one", [0.5])
    monkeypatch.chdir(project.path)
    offsets = [number / FINISHED for number in range(FINISHED)]
    space = Space(["sfd"], {"delta_t": offsets}, [], CHANGES)
    planned = plan_points(base_values(CURRENT, project.path), space, pipeline_code(project.path), project.path)
    (commit,) = project.run("git", "for-each-ref", "--format=%(objectname)", "refs/sfd/one").stdout.split()
    for point in planned:  # as if all had been computed: the record of one
        project.run("git", "update-ref", f"refs/sfd/points/{point.key}", commit)
    sweep(laboratory, "finished", offsets)
    _, finished = sweep(laboratory, "finished", offsets)

    before, started = server_memory(laboratory), time.monotonic()
    grid = {"delta_t": [number / LARGEST for number in range(LARGEST)]}
    from prefect.artifacts import Artifact  # noqa: PLC0415 - Prefect reads its settings when it is imported

    from flows.dispatch import MOST_WAITING  # noqa: PLC0415

    run = laboratory.ask("sweep/sweep", name="largest", variants=["sfd"], grid=grid, seeds=[9], changes=CHANGES)
    wait_until(lambda: Artifact.get("largest-plan"), "the plan")
    planning = time.monotonic() - started
    wait_until(lambda: len(open_points(laboratory)) >= MOST_WAITING, "the start of the points")
    starting = time.monotonic() - started
    server, planner = server_memory(laboratory) - before, memory_of_processes([engine_of(run).pid])
    ending: list[float] = []

    def cancel() -> None:
        cancelled = time.monotonic()
        project.run(sys.executable, "-m", "prefect", "flow-run", "cancel", str(run))
        wait_until(lambda: laboratory.state(run).is_final() and not open_points(laboratory), "the end of the points")
        ending.append(time.monotonic() - cancelled)

    benchmark.pedantic(cancel, rounds=1)
    benchmark.extra_info.update(
        finished_points=FINISHED, finished=finished, points=LARGEST, planning=planning, starting=starting, server=server,
        planner=planner, cancelling=ending[0],
    )  # fmt: skip


def open_points(laboratory: WholeLaboratory) -> list[Any]:
    """Return the flow runs of points that have not ended."""
    return [run for run in laboratory.points() if not run.state.is_final()]


def sweep(laboratory: WholeLaboratory, name: str, offsets: list[float]) -> tuple[list[dict[str, Any]], float]:
    """Run a sweep and return the records of its points and the seconds it took."""
    started = time.monotonic()
    run = laboratory.ask("sweep/sweep", name=name, variants=["sfd"], grid={"delta_t": offsets}, changes=CHANGES)
    state = laboratory.finish(run, 1800)
    assert state.is_completed(), state.message
    return records_of(laboratory.project, name), time.monotonic() - started


def join(laboratory: WholeLaboratory, path: Path) -> subprocess.Popen[bytes]:
    """Start a worker in another clone, which gives it its name, with a cache of its own."""
    first = laboratory.project
    first.run("git", "clone", "--quiet", str(first.path), str(path))
    shutil.copytree(first.path / "images", path / "images", dirs_exist_ok=True)
    shutil.copy2(first.path / ".dvc" / "config.local", path / ".dvc" / "config.local")
    command = f"source {first.path}/.sfd/lab/env && SFD_WORKER={path.name} exec python -m flows.deployments --points"
    worker = Project(path).start("bash", "-c", command)
    laboratory.await_worker(path.name)
    return worker


def memory_of(laboratory: WholeLaboratory) -> int:
    """Return the bytes that all processes of a laboratory hold for themselves."""
    state = laboratory_state(laboratory)
    leaders = [state["supervisor"]["pid"], *(record["process"]["pid"] for record in state["servers"])]
    return memory_of_processes(leaders)


def server_memory(laboratory: WholeLaboratory) -> int:
    """Return the bytes that Prefect's server holds for itself."""
    servers = laboratory_state(laboratory)["servers"]
    return memory_of_processes([record["process"]["pid"] for record in servers if record["name"] == "prefect"])


def laboratory_state(laboratory: WholeLaboratory) -> dict[str, Any]:
    return dict(json.loads((laboratory.project.path / ".sfd" / "lab" / "state.json").read_text()))


def memory_of_processes(leaders: list[int]) -> int:
    """Return the bytes that processes and those that they started hold for themselves."""
    found = {process for pid in leaders for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))}
    return sum(process.memory_full_info().pss for process in found)
