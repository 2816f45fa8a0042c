"""A point that shares a training with another process waits for it."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from laboratory import processes_in
from prefect.settings import PREFECT_UI_URL, temporary_settings

from flows import point
from flows.artifacts import page_of
from sfd_core.experiment.pruning import Judge, Pruned
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
TRAINING = """
import signal, sys, time

def stop(*_):
    open("checkpoint", "w").write("kept")
    sys.exit(85)

signal.signal(signal.SIGTERM, stop)
print("sfd: step 100, validation loss: texture 0.5, semantic 0.1", flush=True)
time.sleep(300)
"""


def there(folder: Path, stage: str, report: Callable[[str], None]) -> Place:
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (folder / "dvc.yaml").write_text(f"stages:\n  train:\n    cmd: {sys.executable} stage.py\n")
    (folder / "stage.py").write_text(stage)
    return Place(folder, environment(folder) | {"PYTHONPATH": str(ROOT)}, folder / "log", report=report)


def test_a_point_whose_stage_is_busy_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reproduce(place: Place, targets: Sequence[str], key: str) -> str:
        return place.dvc("repro", *targets)

    monkeypatch.setattr(point, "reproduce", reproduce)
    monkeypatch.setattr(point, "BUSY_SECONDS", 0.0)
    monkeypatch.setattr(point.limits, "slots", lambda: 1)
    monkeypatch.setenv("SFD_WORKER", f"test-{tmp_path.name}")
    lines: list[str] = []
    assert "Running stage 'train'" in point.compute(there(tmp_path, STAGE, lines.append), ["train"], "key")
    assert sum("exited with 76" in line for line in lines) == 1
    assert sum("trying again" in line for line in lines) == 1


def test_limits_that_come_as_json_are_numbers_again() -> None:
    given = {"key": "key", "commit": "0123", "values": {}, "targets": [], "highest_losses": {"100": 2.5}}
    assert point.point.validate_parameters(given)["highest_losses"] == {100: 2.5}


def test_the_page_of_a_flow_run_is_known_without_the_password() -> None:
    with temporary_settings({PREFECT_UI_URL: "http://user:hidden@host:4200"}):
        assert page_of("0123") == "http://host:4200/runs/flow-run/0123"
        assert page_of(None) == ""


def test_a_training_that_is_behind_is_stopped_at_a_checkpoint(tmp_path: Path) -> None:
    judge, started = Judge({100: 0.4}), time.monotonic()
    with pytest.raises(Pruned, match=r"validation loss 0\.5 at step 100"):
        there(tmp_path, TRAINING, judge.read).dvc("repro", "train")
    assert time.monotonic() - started < 60
    assert (tmp_path / "checkpoint").read_text() == "kept"
    assert processes_in(tmp_path) == []
