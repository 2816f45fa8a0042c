"""The deployments of `prefect.yaml`, run by Prefect's own worker of a process pool."""

import sys
from pathlib import Path

import pytest
import yaml
from laboratory import WITH_SERVERS, Laboratory
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
def test_a_pool_of_processes_plans_a_sweep(laboratory: Laboratory, tiny: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFD_WORK_POOL", "processes")
    monkeypatch.setenv("SFD_CLONE", str(tiny.path))
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    tiny.run(*prefect, "work-pool", "create", "processes", "--type", "process")
    tiny.run(*prefect, "deploy", "--all", "--prefect-file", str(ROOT / "prefect.yaml"))
    run = laboratory.ask("offset sweep/offset sweep", name="pooled", delta_t=[0.0, 0.5], dry_run=True)
    tiny.run(*prefect, "worker", "start", "--pool", "processes", "--run-once")
    state = laboratory.finish(run, 300)
    assert state.is_completed(), state.message
    assert laboratory.artifact("pooled-plan")
