"""A point that shares a training with another process waits for it."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from prefect.settings import PREFECT_UI_URL, temporary_settings

from flows import point
from flows.artifacts import page_of
from sfd_core.workspace.dvc import Place, environment

ROOT = Path(__file__).parents[2]
STAGE = """
from pathlib import Path
from sfd_core.host.errors import BusyError, exits_cleanly

@exits_cleanly
def main():
    if not Path("asked").exists():
        Path("asked").touch()
        raise BusyError("another machine trains this")

main()
"""


def test_a_point_whose_stage_is_busy_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  train:\n    cmd: {sys.executable} stage.py\n")
    (tmp_path / "stage.py").write_text(STAGE)

    def reproduce(place: Place, targets: Sequence[str], key: str) -> str:
        return place.dvc("repro", *targets)

    monkeypatch.setattr(point, "reproduce", reproduce)
    monkeypatch.setattr(point, "BUSY_SECONDS", 0.0)
    monkeypatch.setattr(point.limits, "slots", lambda: 1)
    monkeypatch.setenv("SFD_WORKER", f"test-{tmp_path.name}")
    lines: list[str] = []
    there = Place(tmp_path, environment(tmp_path) | {"PYTHONPATH": str(ROOT)}, tmp_path / "log", report=lines.append)
    assert "Running stage 'train'" in point.compute(there, ["train"], "key")
    assert sum("exited with 76" in line for line in lines) == 1
    assert sum("trying again" in line for line in lines) == 1


def test_the_page_of_a_flow_run_is_known_without_the_password() -> None:
    with temporary_settings({PREFECT_UI_URL: "http://user:hidden@host:4200"}):
        assert page_of("0123") == "http://host:4200/runs/flow-run/0123"
        assert page_of(None) == ""
