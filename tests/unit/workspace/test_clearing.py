"""What `sfd clean` deletes of experiments and points, and what it leaves."""

import json
import os
from pathlib import Path

import pytest

from sfd_core.host.errors import ConfigError
from sfd_core.host.locks import locked
from sfd_core.workspace.clearing import find_clearable


def reasons(project: Path, checkpoints: bool = False) -> dict[str, str]:
    return {item.path.name: item.why for item in find_clearable(project, checkpoints)}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").touch()
    for name in ("experiments/done", "experiments/begun", "experiments/stopped", "points/computed", "points/free"):
        (tmp_path / ".sfd" / name).mkdir(parents=True)
    return tmp_path


def test_experiments_and_points_go_unless_something_works_in_them_or_can_be_resumed(project: Path) -> None:
    dvc = project / ".sfd" / "experiments" / "begun" / ".dvc" / "tmp"
    dvc.mkdir(parents=True)
    written = {str(project / ".sfd" / "experiments" / "begun" / "outputs" / "code"): {"pid": os.getpid(), "cmd": "dvc"}}
    (dvc / "rwlock").write_text(json.dumps({"write": written}))
    checkpoint = project / ".sfd" / "experiments" / "stopped" / ".sfd" / "resume" / "train" / "key" / "step-00000002" / "state"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"123")
    with locked(project / ".sfd" / "points" / "computed.lock"):
        found = reasons(project)
        whole = reasons(project, checkpoints=True)
    kept = {"begun": "in work", "stopped": "holds checkpoints; --checkpoints deletes it, too", "computed": "in work"}
    assert found == {"done": "", "free": "", **kept}
    assert whole == found | {"stopped": ""}
    assert {item.path.name: item.size for item in find_clearable(project, True)}["stopped"] == 3


def test_outputs_with_a_file_that_no_stage_wrote_are_kept(project: Path) -> None:
    """Such as numbers of `sfd evaluate --out` or an imported denoiser: DVC restores neither."""
    done = project / ".sfd" / "experiments" / "done"
    (done / "outputs" / "train" / "sfd").mkdir(parents=True)
    (done / "outputs" / "train" / "sfd" / "model.json").touch()
    (done / "outputs" / "mine.json").touch()
    (done / "dvc.lock").write_text("stages: {train@sfd: {outs: [{path: outputs/train/sfd}]}}")
    assert reasons(project)["done"] == "outputs/mine.json is no stage's output; move it to another place"


def test_a_folder_that_is_no_project_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    with pytest.raises(ConfigError, match="is no project"):
        find_clearable(tmp_path, False)
