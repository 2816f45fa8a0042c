import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sfd_core.experiment.params import GuidanceParams
from sfd_core.host import paths, resume
from sfd_core.host.errors import BusyError, ConfigError
from sfd_core.host.resume import Code, mixed_codes
from sfd_core.stages.training import Origin
from sfd_core.training.checkpoint import Piece, ResumeFolder, State, resume_key

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


def test_of_processes_that_finish_a_checkpoint_together_one_makes_it_and_none_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process sees this one's file before this one has ended its write, and renames the folder."""
    folder, fsync = ResumeFolder(tmp_path / "resume"), paths.fsync
    states = [State({"weight": Piece(torch.full((1,), float(rank)), rank)}, {"step": 1}) for rank in (0, 1)]

    def overtaken(path: Path) -> None:
        if (path / "state-00000-of-00002.json").exists() and states:
            folder.save(1, states.pop(), (1, 2))
        fsync(path)

    monkeypatch.setattr(paths, "fsync", overtaken)
    folder.save(1, states.pop(0), (0, 2))
    tensors = {"weight": torch.zeros(2)}
    assert folder.newest() == 1
    folder.read(1, tensors)
    assert tensors["weight"].tolist() == [0.0, 1.0]


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
    (folder.path / "averages").mkdir()
    (folder.path / "averages" / ".step-00000002-0.05.safetensors.abc.partial").touch()
    found = loaded(folder)
    assert found is not None
    assert found[0] == 1
    assert sorted(path.name for path in folder.path.iterdir()) == ["averages", "step-00000001"]
    assert not list((folder.path / "averages").iterdir()), "all of it is copied to the output"


def test_snapshots_keep_weights_and_when_they_were_taken(tmp_path: Path) -> None:
    folder = ResumeFolder(tmp_path / "resume")
    later = folder.save_snapshot(20, {"weight": torch.arange(6.0).reshape(2, 3).T})
    earlier = folder.save_snapshot(10, {"weight": torch.zeros(3, 2)})
    assert folder.snapshots() == (earlier, later)
    folder.forget_beyond(10)
    assert [kept.step for kept in folder.snapshots()] == [10]


def test_deleting_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    folder = filled(tmp_path / "resume", 1)
    folder.finish()
    folder.finish()
    assert not folder.path.exists()


def test_long_work_is_taken_back_until_its_result_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC deletes outputs that it has not recorded before it starts a stage again."""
    monkeypatch.chdir(tmp_path)
    folder = filled(Path(".sfd/resume/train/key"), 1)
    Path("metrics.json").write_text('{"seconds": 4000}')
    folder.finish(Path("metrics.json"), 4000)
    assert not folder.path.exists()
    resume.drop_recorded(Path("dvc.lock"))
    with folder.locked():
        assert folder.newest() == 1
    folder.finish(Path("metrics.json"), 4000)
    Path("dvc.lock").write_text(f"md5: {hashlib.md5(Path('metrics.json').read_bytes()).hexdigest()}\n")
    resume.drop_recorded(Path("dvc.lock"))
    with folder.locked():
        assert folder.newest() is None
    filled(folder.path, 2).finish(Path("metrics.json"), 500)
    assert list(folder.path.parent.iterdir()) == []


def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    folder = ResumeFolder(tmp_path / "resume")
    with folder.locked(), pytest.raises(BusyError, match="another process"), folder.locked():
        pass
    with folder.locked():
        pass


def test_the_key_follows_parameters_and_inputs() -> None:
    group = GuidanceParams(scale=1.0, interval=[0.0, 1.0])
    key = resume_key(group, 0.1, inputs=["abc"])
    assert key == resume_key(group, 0.1, inputs=["abc"])
    assert key != resume_key(group, 0.2, inputs=["abc"])
    assert key != resume_key(group, 0.1, inputs=["abd"])


def trained(path: Path, seconds: float, code: Code) -> ResumeFolder:
    """A folder with one checkpoint that `code` reached after so many seconds of training."""
    folder = ResumeFolder(path, code)
    folder.settle()
    folder.history_path.write_text("step\n")
    folder.save(1, State.copied({"weight": torch.zeros(3)}, {"step": 1, "seconds": seconds}))
    return folder


def test_the_time_of_a_training_decides_whether_other_code_may_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    old, new = Code("old", {"sfd_core.a": "1"}, {"torch": "1.0"}), Code("new", {"sfd_core.a": "2"}, {"torch": "1.1"})
    short, long = trained(Path("resume/train/short"), 599.0, old), trained(Path("resume/train/long"), 601.0, old)
    ResumeFolder(short.path, new).settle()
    assert short.newest() is None
    assert not short.history_path.exists()
    assert "starting again" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"10 minutes .* sfd_core\.a, torch 1\.0 -> 1\.1 differ"):
        ResumeFolder(long.path, new).settle()
    assert long.newest() == 1


def test_a_checkpoint_carries_the_codes_that_reached_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trained(tmp_path / "resume", 1000.0, Code("old"))
    monkeypatch.setenv("SFD_RESUME", "continue")
    second = ResumeFolder(first.path, Code("new"))
    second.settle()
    second.save(2, State.copied({"weight": torch.zeros(3)}, {"step": 2, "seconds": 1001.0}))
    assert mixed_codes(second.path / "step-00000001") == {}
    assert mixed_codes(second.path / "step-00000002") == mixed_codes(second.path) == {"codes": ["old", "new"]}
    (tmp_path / "model.json").write_text('{"format": 1}')
    Origin({}, second).write(tmp_path)
    assert json.loads((tmp_path / "model.json").read_text()) == {"format": 1, "codes": ["old", "new"]}


def test_the_folder_of_a_stage_lies_outside_the_outputs() -> None:
    assert ResumeFolder.of("train", "key", Code("")).path == paths.STATE / "resume" / "train" / "key"
