"""The table of what is in work or finished in a clone."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from emoji import emoji_values
from synthetic_outputs import train_again, write_outputs

from sfd_core.experiment.params import Params
from sfd_core.host.resume import held
from sfd_core.reporting.progress import Work, read_work
from sfd_core.training.history import History, Record

STEPS = emoji_values()["train"]["optimisation"]["steps"]


def begin_training(place: Path, steps: int, key: str = "key") -> Path:
    """Lay out a training of 2 steps a second that was stopped after `steps` steps."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "params.yaml").write_text(yaml.safe_dump(emoji_values()))
    folder = place / ".sfd" / "resume" / "train" / key
    with held(folder, "training"):
        pass
    history = History(folder / "history.csv")
    for step in range(10, steps + 1, 10):
        history.append(Record(step, 64 * step, step / 2, {"loss": 1.0}, 1.0, 1e-3, 128.0))
    history.close()
    return folder


def test_a_training_in_work_has_a_rate_and_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begin_training(tmp_path / ".sfd" / "experiments" / "long", 200)
    monkeypatch.setattr(sys, "argv", ["train.py", "--variant", "sfd-seed-1"])
    with held(folder, "training"):
        (work,) = read_work(tmp_path)
    assert work == Work("train@sfd-seed-1", "running", str(folder), 200, STEPS, 2.0)
    assert work.row[2:5] == (
        f"200 of {STEPS:,}",
        "2 steps/s",
        f"{int((STEPS - 200) / 2 // 60)} min {int((STEPS - 200) / 2 % 60):02d} s",
    )
    (stopped,) = read_work(tmp_path)
    assert (stopped.state, stopped.stage, stopped.row[4]) == ("stopped", "train@sfd-seed-1", "")


def test_what_runs_comes_first_and_another_process_that_asks_leaves_the_note(tmp_path: Path) -> None:
    begin_training(tmp_path, 50, "a")
    folder = begin_training(tmp_path, 30, "b")
    begin_training(tmp_path, 10, ".doomed.partial")
    with held(folder, "training"), pytest.raises(Exception, match="another process"), held(folder, "training"):
        pass
    assert json.loads((folder / "lock").read_text()) == sys.argv
    with held(folder, "training"):
        assert [(work.state, work.step) for work in read_work(tmp_path)] == [("running", 30), ("stopped", 50)]


def test_what_is_finished_shows_its_distance(tmp_path: Path, params: Params) -> None:
    write_outputs(tmp_path / "outputs", params)
    for name in params.active:
        (tmp_path / "outputs" / "evaluate" / name / "metrics.json").write_text(
            '{"kid_x": 1.0, "fd_efficientnet_lite2": 2156.0}'
        )
        (tmp_path / "outputs" / "train" / name / "metrics.json").write_text('{"steps": 1500, "seconds": 300.0}')
    found = {work.stage: work for work in read_work(tmp_path)}
    assert set(found) == {"texture_vae", "semantic_vae", *(f"train@{name}" for name in params.active)}
    row = ("train@sfd", "finished", "1,500 of 1,500", "5 steps/s", "", "2,156 fd_efficientnet_lite2")
    assert found["train@sfd"].row[:-1] == row
    train_again(tmp_path / "outputs", "sfd")
    distances = {work.stage: work.distance for work in read_work(tmp_path)}
    assert distances["train@sfd"] == ""  # of the weights before
    assert distances["train@sync"]


def test_a_place_with_parameters_that_cannot_be_read_still_shows_its_work(tmp_path: Path) -> None:
    begin_training(tmp_path, 20)
    (tmp_path / "params.yaml").write_text("nothing: 1\n")
    assert [(work.stage, work.row[2]) for work in read_work(tmp_path)] == [("train", "20")]


def test_stages_that_keep_nothing_to_resume_are_known_from_dvc(tmp_path: Path) -> None:
    begin_training(tmp_path, 20)
    written = {"outputs/evaluate/sfd/grids": os.getpid(), "outputs/reference": os.getpid(), "report": 2**22 + 1}
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    by = {str(tmp_path / path): {"pid": pid, "cmd": "dvc repro"} for path, pid in written.items()}
    (tmp_path / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({"write": by}))
    found = [(work.stage, work.state) for work in read_work(tmp_path)]
    assert found == [("evaluate@sfd", "running"), ("reference", "running"), ("train", "stopped")]


def test_a_training_that_begins_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--variant", "sfd"])
    older, newer = begin_training(tmp_path, 20, "older"), begin_training(tmp_path, 30, "newer")
    os.utime(older / "lock", (1, 1))
    by = {str(tmp_path / "outputs" / "train" / "sfd" / "model.json"): {"pid": os.getpid(), "cmd": "dvc repro"}}
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({"write": by}))
    assert [(work.state, work.where) for work in read_work(tmp_path)] == [("running", str(newer)), ("stopped", str(older))]


def test_checkpoints_tell_of_steps_that_the_curve_has_not_reached(tmp_path: Path) -> None:
    folder = begin_training(tmp_path, 0)
    for step, time in ((100, 1000), (150, 1010)):
        (folder / f"step-{step:08d}").mkdir(parents=True)
        os.utime(folder / f"step-{step:08d}", (time, time))
    (work,) = read_work(tmp_path)
    assert (work.step, work.rate) == (150, 5.0)
    assert replace(work, steps=100).row[2] == "150"
