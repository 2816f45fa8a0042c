"""The deployments of `prefect.yaml`, run by Prefect's own worker of a process pool."""

import sys
from pathlib import Path

import pytest
import yaml
from laboratory import WITH_SERVERS, Laboratory, flow_project, records_of
from projects import Project

pytestmark = WITH_SERVERS

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def test_every_flow_that_a_worker_serves_is_a_deployment() -> None:
    from flows.point import point  # noqa: PLC0415 - Prefect reads its settings when it is imported
    from flows.worker import DEPLOYED, tag_of  # noqa: PLC0415

    served = DEPLOYED | {"point": point}
    assert {entry["name"]: entry["tags"] for entry in DEPLOYMENTS} == {name: [tag_of(flow)] for name, flow in served.items()}
    for entry in DEPLOYMENTS:
        file, _, function = entry["entrypoint"].partition(":")
        assert f"\ndef {function}(" in (ROOT / file).read_text()


@pytest.mark.slow
@pytest.mark.xdist_group("flows")
def test_a_pool_of_processes_computes_a_sweep_with_its_job_variables(
    laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = flow_project(tmp_path / "project", ["sfd"])
    monkeypatch.setenv("SFD_WORK_POOL", "processes")
    monkeypatch.setenv("SFD_CLONE", str(project.path))
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    project.run(*prefect, "work-pool", "create", "processes", "--type", "process")
    project.run(*prefect, "deploy", "--all", "--prefect-file", str(ROOT / "prefect.yaml"))
    laboratory.stop_others(project)
    worker = project.start(*prefect, "worker", "start", "--pool", "processes")
    try:
        asked = {"delta_t": [0.0], "job_variables": {"env": {"SFD_WORKER": "named-in-the-form"}}}
        state = laboratory.finish(laboratory.ask("offset sweep/offset sweep", name="pooled", **asked))
    finally:
        project.kill(worker)
    assert state.is_completed(), state.message
    assert [record["worker"] for record in records_of(project, "pooled")] == ["named-in-the-form"]


@pytest.mark.xdist_group("flows")
def test_job_variables_without_a_pool_are_refused(laboratory: Laboratory, project: Project) -> None:
    """The worker of the fixture takes the deployments out of the pool of the test above."""
    run = laboratory.ask("offset sweep/offset sweep", name="alone", delta_t=[0.0], dry_run=True, job_variables={"gpus": 4})
    state = laboratory.finish(run)
    assert state.is_failed()
    assert "no work pool runs points here" in state.message
