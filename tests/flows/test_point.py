"""Points without a server: one that shares a training with another process waits for it; those of a study differ by name."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from laboratory import processes_in
from prefect.settings import PREFECT_UI_URL, temporary_settings

from flows import point
from flows.artifacts import page_of
from flows.point import _measured
from flows.studies import _point, _Study
from sfd_core.experiment.pruning import Judge, Pruned
from sfd_core.tracking.runs import MEASURED_BY
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


def test_points_of_a_study_that_were_sampled_otherwise_have_other_names_and_settings() -> None:
    study = _Study("guidance", "sfd", "params.yaml", [], "curve", ("scale", "evaluations"), {}, lambda _: [])
    row = {"scale": "1.5", "evaluations": "20", "step": "800", "sampler": "euler, shift 1.4", "file": "a.json", "fd_x": "9.5"}
    kinds = ("cfg: texture 1.5 in [0.0, 1.0]", "cfg: texture 1.0 in [0.0, 1.0]", "internal: texture 1.5 in [0.0, 1.0]")
    rows = [row | {"guidance": kind, "samples": samples} for kind in kinds for samples in ("200", "1000")]
    points = [_point(study, {**row, "file": f"{number}.json"}) for number, row in enumerate(rows)]
    assert len({found.name for found in points}) == len({tuple(found.settings.items()) for found in points}) == 6
    words = "scale-1.5-evaluations-20-guidance-cfg_texture_1.5_in_0.0_1.0-samples-200-sampler-euler_shift_1.4"
    assert points[0].name == f"sfd-{words}"
    assert points[0].settings["guidance"] == kinds[0]


def test_a_point_records_what_its_numbers_compare_by(tmp_path: Path) -> None:
    assert _measured(tmp_path) == {}
    kept = dict.fromkeys(MEASURED_BY, "ab")
    final = {"fd_x": {"value": 1.0, "protocol": {**kept, "seed": 0}}}
    (tmp_path / "numbers.json").write_text(json.dumps({"final": final}))
    assert _measured(tmp_path) == {"fd_x": kept}
