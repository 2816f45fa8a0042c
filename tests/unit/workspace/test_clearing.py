"""What `sfd clean` deletes of experiments and points, and what it leaves."""

import json
import os
from pathlib import Path

import pytest

from sfd_core.host.errors import ConfigError
from sfd_core.host.locks import locked
from sfd_core.workspace.clearing import find_clearable


def reasons(project: Path, checkpoints: bool = False) -> dict[str, str]:
    return {str(item.path.relative_to(project / ".sfd")): item.why for item in find_clearable(project, checkpoints)}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").touch()
    for name in ("done", "begun", "stopped"):
        report = tmp_path / ".sfd" / "experiments" / name / "report" / "index.html"
        report.parent.mkdir(parents=True)
        report.touch()
        (tmp_path / ".sfd" / "experiments" / f"{name}.lock").touch()
    for name in ("computed", "free"):
        (tmp_path / ".sfd" / "points" / name / ".sfd" / "verified").mkdir(parents=True)
        (tmp_path / ".sfd" / "points" / f"{name}.lock").touch()
    return tmp_path


def test_results_and_points_go_unless_something_works_in_them_or_can_be_resumed(project: Path) -> None:
    begun, stopped = (project / ".sfd" / "experiments" / name for name in ("begun", "stopped"))
    verified = begun / ".sfd" / "verified" / "key"
    verified.parent.mkdir(parents=True)
    verified.touch()
    (begun / ".dvc" / "tmp").mkdir(parents=True)
    written = {str(begun / "outputs" / "code"): {"pid": os.getpid(), "cmd": "dvc"}}
    (begun / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({"write": written}))
    checkpoint = stopped / ".sfd" / "resume" / "train" / "key" / "step-00000002" / "state"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"123")
    with locked(project / ".sfd" / "points" / "computed.lock"):
        found = reasons(project)
        whole = reasons(project, checkpoints=True)
    reports = {f"experiments/{name}/report": "" for name in ("done", "begun", "stopped")}
    resume, why = "experiments/stopped/.sfd/resume", "holds checkpoints; --checkpoints deletes it, too"
    kept = {"experiments/begun/.sfd/verified": "in work", resume: why, "points/computed": "in work"}
    assert found == {"points/free": "", **reports, **kept}
    assert whole == found | {resume: ""}
    assert {item.path.name: item.size for item in find_clearable(project, True)}["resume"] == 3


def test_what_began_after_the_list_was_made_is_kept(project: Path) -> None:
    items = {str(item.path.relative_to(project / ".sfd")): item for item in find_clearable(project, checkpoints=False)}
    with locked(project / ".sfd" / "points" / "free.lock"):
        assert not items["points/free"].delete()
    assert items["points/free"].path.is_dir()
    assert items["points/computed"].delete()
    assert not items["points/computed"].path.exists()


def test_of_an_experiment_the_record_of_what_was_run_stays(project: Path) -> None:
    done = project / ".sfd" / "experiments" / "done"
    (done / "sfd_core").mkdir()
    for name in ("params.yaml", "dvc.yaml", "sfd_core/changed.py"):
        (done / name).touch()
    for item in find_clearable(project, checkpoints=True):
        item.delete()
    assert sorted(path.name for path in done.iterdir()) == ["dvc.yaml", "params.yaml", "sfd_core"]


def test_inputs_that_are_linked_beside_experiments_and_points_are_kept(project: Path) -> None:
    own = project / "data" / "report" / "mine.png"
    own.parent.mkdir(parents=True)
    own.touch()
    for kind in ("experiments", "points"):
        (project / ".sfd" / kind / "images").symlink_to(project / "data")  # as of the path ../images
        (project / ".sfd" / kind / "other").mkdir()
        (project / ".sfd" / kind / "other" / "report").symlink_to(own.parent)
    for item in find_clearable(project, checkpoints=True):
        item.delete()
    assert own.is_file()
    assert sorted(path.name for path in (project / ".sfd" / "points").glob("*/")) == ["images", "other"]


def test_outputs_with_a_file_that_no_stage_wrote_are_kept(project: Path) -> None:
    """Such as numbers of `sfd evaluate --out` or an imported denoiser: DVC restores neither."""
    done = project / ".sfd" / "experiments" / "done"
    (done / "outputs" / "train" / "sfd").mkdir(parents=True)
    (done / "outputs" / "train" / "sfd" / "model.json").touch()
    (done / "outputs" / "mine.json").touch()
    (done / "dvc.lock").write_text("stages: {train@sfd: {outs: [{path: outputs/train/sfd}]}}")
    assert reasons(project)["experiments/done/outputs"] == "outputs/mine.json is no stage's output; move it to another place"


def test_a_folder_that_is_no_project_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    with pytest.raises(ConfigError, match="is no project"):
        find_clearable(tmp_path, False)
