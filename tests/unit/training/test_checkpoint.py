from pathlib import Path

import pytest
import torch
from torch import Tensor

from sfd_core.experiment import params as config
from sfd_core.host import paths
from sfd_core.host.errors import ResourceError
from sfd_core.training import checkpoint
from sfd_core.training.checkpoint import ResumeFolder, State, resume_key

STATE = "state-00000-of-00001.safetensors"


def filled(path: Path, *steps: int) -> ResumeFolder:
    folder = ResumeFolder(path)
    for step in steps:
        folder.save(step, State.copied({"weight": torch.full((3,), float(step))}, {"step": step}))
        folder.prune()
    return folder


def loaded(folder: ResumeFolder) -> tuple[int, Tensor] | None:
    step = folder.newest()
    if step is None:
        return None
    tensors = {"weight": torch.zeros(3)}
    assert folder.read(step, tensors) == {"step": step}
    return step, tensors["weight"]


def test_the_newest_checkpoint_is_loaded_and_two_are_kept(tmp_path: Path) -> None:
    folder = filled(tmp_path / "resume", 5, 10, 100, 1000)
    found = loaded(folder)
    assert found is not None
    assert found[0] == 1000
    assert torch.equal(found[1], torch.full((3,), 1000.0))
    assert sorted(path.name for path in folder.path.iterdir()) == ["step-00000100", "step-00001000"]


def test_newest_means_by_step_and_not_by_name_or_time(tmp_path: Path) -> None:
    folder = filled(tmp_path / "resume", 123_456_789, 2)
    assert folder.newest() == 123_456_789


def test_an_empty_or_missing_folder_holds_nothing(tmp_path: Path) -> None:
    assert ResumeFolder(tmp_path / "missing").newest() is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest", "manifest is no JSON"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = filled(tmp_path / "resume", 1, 2)
    newest = folder.path / "step-00000002"
    content = (newest / STATE).read_bytes()
    match damage:
        case "truncated":
            (newest / STATE).write_bytes(content[: len(content) // 2])
        case "flipped":
            (newest / STATE).write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
        case "missing":
            (newest / STATE).unlink()
        case "no manifest":
            (newest / STATE.replace("safetensors", "json")).unlink()
        case _:
            (newest / STATE.replace("safetensors", "json")).write_text("{")
    found = loaded(folder)
    assert found is not None
    assert found[0] == 1
    assert "step-00000002 is damaged" in capsys.readouterr().err
    assert not newest.exists()


def test_what_an_interrupted_write_left_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    folder = filled(tmp_path / "resume", 1)
    (folder.path / ".step-00000002.abc.partial").mkdir()
    (folder.path / ".history.csv.abc.partial").touch()
    found = loaded(folder)
    assert found is not None
    assert found[0] == 1
    assert [path.name for path in folder.path.iterdir()] == ["step-00000001"]


def test_snapshots_keep_weights_and_when_they_were_taken(tmp_path: Path) -> None:
    folder = ResumeFolder(tmp_path / "resume")
    folder.save_snapshot(20, 160, 2.5, {"weight": torch.arange(6.0).reshape(2, 3).T})
    folder.save_snapshot(10, 80, 1.25, {"weight": torch.zeros(3, 2)})
    assert [(kept.step, kept.images_seen, kept.seconds) for kept in folder.snapshots()] == [(10, 80, 1.25), (20, 160, 2.5)]
    folder.forget_beyond(10)
    assert [kept.step for kept in folder.snapshots()] == [10]


def test_deleting_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    folder = filled(tmp_path / "resume", 1)
    folder.delete()
    folder.delete()
    assert not folder.path.exists()


def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    folder = ResumeFolder(tmp_path / "resume")
    with folder.locked(), pytest.raises(ResourceError, match="another process"), folder.locked():
        pass
    with folder.locked():
        pass


def test_the_key_follows_parameters_inputs_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = config.GuidanceParams(scale=1.0, interval=[0.0, 1.0])
    key = resume_key(group, 0.1, inputs=["abc"])
    assert key == resume_key(group, 0.1, inputs=["abc"])
    assert key != resume_key(group, 0.2, inputs=["abc"])
    assert key != resume_key(group, 0.1, inputs=["abd"])
    edited = tmp_path / "checkpoint.py"
    edited.write_bytes(Path(checkpoint.__file__).read_bytes() + b"\n")
    monkeypatch.setattr(checkpoint, "__file__", str(edited))
    assert key != resume_key(group, 0.1, inputs=["abc"])


def test_the_folder_of_a_stage_lies_outside_the_outputs() -> None:
    assert ResumeFolder.of("train", "key").path == paths.STATE / "resume" / "train" / "key"
