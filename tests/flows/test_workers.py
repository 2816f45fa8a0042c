"""Two workers in two clones with caches of their own, which share one sweep through the servers and a DVC remote."""

import json
import shutil
import time
from pathlib import Path

import pytest
from laboratory import WITH_SERVERS, Laboratory, flow_project
from projects import Project

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flows"), *WITH_SERVERS]


def with_remote(project: Project, remote: Path) -> Project:
    project.run("dvc", "remote", "add", "--local", "--default", "store", str(remote))
    return project


def clone(project: Project, path: Path, remote: Path) -> Project:
    project.run("git", "clone", "--quiet", str(project.path), str(path))
    shutil.copytree(project.path / "images", path / "images", dirs_exist_ok=True)
    return with_remote(Project(path), remote)


def test_two_machines_share_a_sweep_and_a_third_restores_it(laboratory: Laboratory, tmp_path: Path) -> None:
    first = with_remote(flow_project(tmp_path / "first", ["sfd"]), tmp_path / "remote")
    projects = {"first": first, "second": clone(first, tmp_path / "second", tmp_path / "remote")}
    workers = [laboratory.start_worker(first, "first"), laboratory.start_worker(projects["second"], "second", "--points")]
    run = laboratory.ask("offset sweep/offset sweep", name="shared", delta_t=[0.0, 0.2, 0.4, 0.6])
    state = laboratory.finish(run, 900)
    assert state.is_completed(), state.message
    rows = json.loads(laboratory.artifact("shared-table"))
    assert [row["status"] for row in rows] == ["computed"] * 4
    assert len(first.run("git", "for-each-ref", "refs/sfd/shared").stdout.splitlines()) == 4
    printed = {
        name: "".join(file.read_text() for file in (project.path / ".sfd" / "logs").glob("*.log"))
        for name, project in projects.items()
    }
    trained = {name: text.count("Running stage 'train@sfd'") for name, text in printed.items()}
    assert sum(trained.values()) == 4
    assert min(trained.values()) >= 1, trained
    assert sum(text.count("Running stage 'encode'") for text in printed.values()) == 1
    for worker in workers:
        laboratory.stop(worker)

    third = clone(first, tmp_path / "third", tmp_path / "remote")
    worker = laboratory.start_worker(third, "third")
    started = time.monotonic()
    state = laboratory.finish(laboratory.ask("offset sweep/offset sweep", name="third", delta_t=[0.2, 0.6]), 900)
    print(f"two points restored from the remote: {time.monotonic() - started:.1f} s")
    assert state.is_completed(), state.message
    again = json.loads(laboratory.artifact("third-table"))
    assert [row["status"] for row in again] == ["restored"] * 2
    number = "fd_efficientnet_lite0"
    assert [row[number] for row in again] == [row[number] for row in rows if row["delta_t"] in {0.2, 0.6}]
    laboratory.stop(worker)


def test_a_remote_that_cannot_be_used_is_told_before_any_point_starts(laboratory: Laboratory, tmp_path: Path) -> None:
    project = flow_project(tmp_path / "project", ["sfd"])
    project.run("dvc", "remote", "add", "--local", "--default", "store", "s3://bucket/bytes")
    project.run("dvc", "remote", "modify", "--local", "store", "endpointurl", "http://127.0.0.1:9")
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_MAX_ATTEMPTS": "1", "AWS_DEFAULT_REGION": "x"}
    worker = laboratory.start_worker(project, "cut-off", **keys)
    before = len(laboratory.points())
    run = laboratory.ask("offset sweep/offset sweep", name="cut-off", delta_t=[0.0])
    state = laboratory.finish(run, 600)
    assert state.is_failed()
    assert "127.0.0.1:9" in state.message or "Could not connect" in state.message
    assert "a-secret" not in state.message + (laboratory.path / "cut-off.log").read_text()
    assert len(laboratory.points()) == before
    laboratory.stop(worker)


def test_schedules_that_people_made_outlive_the_worker(laboratory: Laboratory, project: Project) -> None:
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - only tests with a server pay for it
    from prefect.client.schemas.schedules import CronSchedule  # noqa: PLC0415

    with get_client(sync_client=True) as client:
        made = client.read_deployment_by_name("reproduce/reproduce")
        assert made.tags == ["pipeline"]
        client.create_deployment_schedules(made.id, [(CronSchedule(cron="0 3 1 1 *"), True)])
        laboratory.stop(laboratory.start_worker(project, "another"))
        kept = client.read_deployment_by_name("reproduce/reproduce").schedules
    assert [(each.schedule.cron, each.active) for each in kept] == [("0 3 1 1 *", True)]
