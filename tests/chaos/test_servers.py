"""Servers that vanish, are slow, busy or silent in the middle of a sweep, and a full disk: nothing lost, nothing hung.

One laboratory as `make up` starts it; its worker reaches S3 and MLflow through proxies that misbehave when told.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from faulty_proxy import FaultyProxy, Mode
from laboratory import (
    NEEDS_S3,
    WITH_SERVERS,
    WholeLaboratory,
    await_training,
    prefect_variables,
    processes_in,
    records_of,
    whole_project,
)
from projects import Project
from waiting import wait_until

from sfd_core.host.errors import BUSY_EXIT_CODE

pytestmark = [pytest.mark.chaos, pytest.mark.xdist_group("servers"), NEEDS_S3, *WITH_SERVERS]

STEPS, MANY_STEPS = 400, 1500
"""Long enough to be met in the middle, and to outlast a server's absence."""
AWAY_SECONDS = 60.0
LOSSES = 100
"""Points of the loss curve of any such training."""
IN_MLFLOW = """
import json, sys
from sfd_core.tracking.store import Store
store = Store()
runs = store.find({"sfd.key": sys.argv[1]})
print(json.dumps([[tags.get("sfd.complete"), len(store.known(run, ["train/loss"]))] for run, tags in runs]))
"""


@dataclass
class Faulty:
    """The laboratory and what may go wrong between it and its worker."""

    laboratory: WholeLaboratory
    s3: FaultyProxy
    mlflow: FaultyProxy

    @property
    def project(self) -> Project:
        return self.laboratory.project

    def sweep(self, name: str, delta_t: float, steps: int = STEPS) -> Any:
        """Ask for a sweep of one point and return its run."""
        changes = {"train.optimisation.steps": steps, "train.optimisation.checkpoint_every": 50}
        return self.laboratory.ask("sweep/sweep", name=name, variants=["sfd"], grid={"delta_t": [delta_t]}, changes=changes)

    @property
    def worktrees(self) -> Path:
        return self.project.path / ".sfd" / "points"

    def fail(self, proxy: FaultyProxy, mode: Mode, seconds: float) -> None:
        """Let a server misbehave for a while."""
        proxy.set(mode)
        time.sleep(seconds)
        proxy.set("works")

    def row(self, name: str) -> dict[str, Any]:
        (row,) = json.loads(self.laboratory.artifact(f"{name}-table"))
        return dict(row)

    def require_complete(self, run: Any, name: str) -> dict[str, Any]:
        state = self.laboratory.finish(run, 600)
        assert state.is_completed(), state.message
        assert self.row(name)["fd_efficientnet_lite0"] > 0
        assert processes_in(self.worktrees) == []
        (record,) = records_of(self.project, name)
        return record

    def runs_of(self, record: dict[str, Any]) -> list[list[Any]]:
        """Return, for each run in MLflow of a point's training, whether it is complete and how many losses it has."""
        printed = self.project.run("bash", "-c", f"source .sfd/lab/env && python -c '{IN_MLFLOW}' {record['run_key']}").stdout
        return list(json.loads(printed.splitlines()[-1]))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    project = whole_project(tmp_path_factory.mktemp("servers") / "project", ["sfd"])
    laboratory = WholeLaboratory(project)
    s3, mlflow = (FaultyProxy(int(laboratory.ports[f"SFD_LAB_{name}_PORT"])) for name in ("S3", "MLFLOW"))
    laboratory.variables["SFD_LAB_WORKER"] = (
        f"env AWS_ENDPOINT_URL={s3.endpoint} MLFLOW_TRACKING_URI={mlflow.endpoint} {sys.executable} -m flows.deployments"
    )
    with prefect_variables(laboratory.prefect):
        try:
            laboratory.run("up")
            laboratory.await_deployments()
            yield Faulty(laboratory, s3, mlflow)
        finally:
            laboratory.run("down", check=False)
            s3.close()
            mlflow.close()


@pytest.fixture(autouse=True)
def works(faulty: Faulty) -> Iterator[None]:
    """Begin and end every test with servers that work."""
    yield
    faulty.s3.set("works")
    faulty.mlflow.set("works")


def is_s3_of(process: psutil.Process, project: Project) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return "mini" in words and f"-dir={project.path / '.sfd' / 'lab' / 's3'}" in words


def clone_of(faulty: Faulty, name: str, path: Path) -> Project:
    """Clone the sweep's only point, with an empty cache, and pull what it computed."""
    (ref,) = faulty.project.run("git", "for-each-ref", "--format=%(refname)", f"refs/sfd/{name}").stdout.split()
    faulty.project.run("git", "clone", "--quiet", str(faulty.project.path), str(path))
    clone = Project(path)
    clone.run("git", "fetch", "--quiet", "origin", ref)
    clone.run("git", "checkout", "--quiet", "FETCH_HEAD")
    shutil.copytree(faulty.project.path / "images", path / "images", dirs_exist_ok=True)
    (path / ".dvc" / "config.local").write_text((faulty.project.path / ".dvc" / "config.local").read_text())
    return clone


def test_s3_away_for_a_minute_while_checkpoints_are_mirrored(faulty: Faulty, tmp_path: Path) -> None:
    run = faulty.sweep("mirroring", 0.11, MANY_STEPS)
    await_training(faulty.project)
    faulty.fail(faulty.s3, "refuses", AWAY_SECONDS)
    record = faulty.require_complete(run, "mirroring")
    assert faulty.runs_of(record) == [["true", LOSSES]]


def test_s3_away_for_a_minute_while_results_are_pushed_and_all_comes_back_in_an_empty_clone(
    faulty: Faulty, tmp_path: Path
) -> None:
    run = faulty.sweep("pushing", 0.12)
    wait_until(lambda: list(faulty.worktrees.glob("*/outputs/evaluate/sfd/metrics.json")), "the point's numbers")
    faulty.fail(faulty.s3, "refuses", AWAY_SECONDS)
    faulty.require_complete(run, "pushing")
    clone = clone_of(faulty, "pushing", tmp_path / "clone")
    environment = faulty.project.path / ".sfd" / "lab" / "env"
    clone.run("bash", "-c", f"source {environment} && dvc pull --quiet --with-deps evaluate@sfd")
    printed = clone.run("bash", "-c", f"source {environment} && dvc repro evaluate@sfd").stdout
    assert "Running stage" not in printed
    assert "up to date" in printed


def test_s3_busy_and_then_slow(faulty: Faulty) -> None:
    run = faulty.sweep("busy", 0.13)
    await_training(faulty.project)
    faulty.fail(faulty.s3, "busy", 20)
    faulty.s3.set("slow")
    faulty.require_complete(run, "busy")


def test_s3_killed_in_the_middle(faulty: Faulty) -> None:
    run = faulty.sweep("killed", 0.14)
    await_training(faulty.project)
    (server,) = [process for process in psutil.process_iter() if is_s3_of(process, faulty.project)]
    server.kill()
    faulty.require_complete(run, "killed")
    assert "s3       healthy" in faulty.laboratory.run("status")


@pytest.mark.parametrize(
    ("name", "before", "during", "delta_t"),
    [("never-there", "refuses", "refuses", 0.21), ("falls-away", "works", "refuses", 0.22), ("silent", "works", "hangs", 0.23)],
)
def test_mlflow_costs_no_point_whatever_it_does(faulty: Faulty, name: str, before: Mode, during: Mode, delta_t: float) -> None:
    faulty.mlflow.set(before)
    run = faulty.sweep(name, delta_t)
    await_training(faulty.project)
    faulty.mlflow.set(during)
    record = faulty.require_complete(run, name)
    assert "run the sweep again" in faulty.laboratory.artifact(f"{name}-summary")
    faulty.mlflow.set("works")
    again = faulty.sweep(name, delta_t)
    assert faulty.laboratory.finish(again, 600).is_completed()
    assert faulty.row(name)["status"] == "finished before"
    assert faulty.runs_of(record) == [["true", LOSSES]]
    print(f"training beside MLflow that {during}: {record['training']['seconds']:.1f} s")


def test_points_that_share_a_training_wait_for_it(faulty: Faulty) -> None:
    command = f"source .sfd/lab/env && SFD_WORKER=second exec {sys.executable} -m flows.deployments --points"
    second = faulty.project.start("bash", "-c", command)
    try:
        faulty.laboratory.await_worker("second")
        changes = {"train.optimisation.steps": STEPS, "train.optimisation.checkpoint_every": 50}
        grid = {"evaluate.sampler.evaluations": [4, 6]}
        run = faulty.laboratory.ask("sweep/sweep", name="judged-twice", variants=["sfd"], grid=grid, changes=changes)
        state = faulty.laboratory.finish(run, 600)
    finally:
        faulty.project.kill(second)
    assert state.is_completed(), state.message
    rows = json.loads(faulty.laboratory.artifact("judged-twice-table"))
    assert sorted(row["status"] for row in rows) == ["computed", "restored"]
    refused = [
        file
        for file in (faulty.project.path / ".sfd" / "logs").glob("*.log")
        if f"exited with {BUSY_EXIT_CODE}" in file.read_text()
    ]
    assert len(refused) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_told_and_the_training_is_not_done_again(faulty: Faulty) -> None:
    cache = faulty.project.path / ".dvc" / "cache"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "none", str(cache)], check=True)
    try:
        run = faulty.sweep("full", 0.31)
        await_training(faulty.project)
        filler = cache / "filler"
        with filler.open("wb") as file, suppress(OSError):
            while file.write(bytes(2**20)):
                file.flush()
        state = faulty.laboratory.finish(run, 600)
        assert state.is_failed()
        assert "No space left on device" in faulty.laboratory.artifact("full-summary")
        filler.unlink()
        again = faulty.sweep("full", 0.31)
        record = faulty.require_complete(again, "full")
        log = "".join(file.read_text() for file in (faulty.project.path / ".sfd" / "logs").glob("*.log"))
        assert f"resumed after step {STEPS} of {STEPS}" in log
        assert faulty.runs_of(record) == [["true", LOSSES]]
    finally:
        subprocess.run(["umount", "--lazy", str(cache)], check=True)


def test_no_secret_is_anywhere_but_in_the_files_that_are_meant_for_it(faulty: Faulty) -> None:
    lab = faulty.project.path / ".sfd" / "lab"
    credentials = json.loads((lab / "credentials.json").read_text())
    secrets = [value.rpartition(":")[2].encode() for value in credentials.values()]
    meant = {lab / name for name in ("credentials.json", "env", "s3.json", "mlflow_auth.ini")}
    read = 0
    for file in faulty.project.path.rglob("*"):
        if file.is_file() and not file.is_symlink() and file not in meant:
            read += 1
            content = file.read_bytes()
            assert not [name for name, secret in zip(credentials, secrets, strict=True) if secret in content], file
    assert read > 500
    history = faulty.project.run("git", "log", "--all", "--patch").stdout.encode()
    assert not any(secret in history for secret in secrets)
