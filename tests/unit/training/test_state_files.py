"""A checkpoint in the files of several processes: whole only when all are there, read by any number of processes."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from sfd_core.host import paths
from sfd_core.host.resume import Code
from sfd_core.training.checkpoint import Piece, ResumeFolder, State

WHOLE = torch.arange(12.0).reshape(6, 2)


def piece(first: int, stop: int) -> State:
    """The rows of one process, with a scalar and a tensor that each holds whole."""
    tensors = {
        "cut": Piece(WHOLE[first:stop].clone(), first),
        "step": Piece(torch.tensor(7.0), 0),
        "bias": Piece(torch.tensor([first + 0.5]), 0) if first == 0 else Piece(torch.zeros(0), 1),
    }
    return State(tensors, {"step": 3, "seconds": 1.5})


def unfinished(resume: ResumeFolder) -> list[str]:
    return sorted(path.name for path in resume.path.glob(".step-*"))


@pytest.mark.parametrize("cuts", [(), (3,), (1, 4), (2, 2)])
def test_pieces_of_any_cut_make_the_whole(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    resume = ResumeFolder(tmp_path / "resume")
    bounds = [0, *cuts, 6]
    for number, (first, stop) in enumerate(pairwise(bounds)):
        assert not (resume.path / "step-00000003").exists()
        resume.save(3, piece(first, stop), (number, len(cuts) + 1))
    assert unfinished(resume) == []
    assert resume.newest() == 3
    into = {"cut": torch.full((6, 2), -1.0), "step": torch.tensor(-1.0), "bias": torch.full((1,), -1.0)}
    assert resume.read(3, into) == {"step": 3, "seconds": 1.5}
    assert torch.equal(into["cut"], WHOLE)
    assert into["step"] == 7
    assert into["bias"].tolist() == [0.5]


def test_the_order_in_which_processes_finish_does_not_matter(tmp_path: Path) -> None:
    resume = ResumeFolder(tmp_path / "resume")
    resume.save(3, piece(4, 6), (1, 2))
    resume.save(3, piece(0, 4), (0, 2))
    into = {"cut": torch.zeros(6, 2)}
    resume.read(3, into)
    assert torch.equal(into["cut"], WHOLE)


def test_a_process_reads_its_own_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resume = ResumeFolder(tmp_path / "resume")
    for number, (first, stop) in enumerate(((0, 2), (2, 5), (5, 6))):
        resume.save(3, piece(first, stop), (number, 3))
    for first, stop in ((0, 3), (3, 6), (1, 2), (4, 5)):
        mine = torch.full((stop - first, 2), -1.0)
        with monkeypatch.context() as patch:
            patch.setattr(Piece, "of", classmethod(lambda cls, tensor, first=first: cls(tensor, first)))
            resume.read(3, {"cut": mine})
        assert torch.equal(mine, WHOLE[first:stop])


def test_a_tensor_that_is_not_there_or_not_whole_is_named(tmp_path: Path) -> None:
    resume = ResumeFolder(tmp_path / "resume")
    resume.save(3, piece(0, 6))
    with pytest.raises(KeyError, match="step-00000003 lacks other"):
        resume.read(3, {"cut": torch.zeros(6, 2), "other": torch.zeros(1)})
    with pytest.raises(KeyError, match="lacks cut"):
        resume.read(3, {"cut": torch.zeros(7, 2)})


def test_a_copied_state_is_left_alone_by_later_steps() -> None:
    weight, position = torch.ones(3), {"step": 1}
    state = State.copied({"weight": weight}, position)
    weight.add_(1)
    position["step"] = 2
    assert state.tensors["weight"].rows.tolist() == [1.0, 1.0, 1.0]
    assert state.tensors["weight"].first == 0
    assert state.position == {"step": 1}


def test_the_curve_so_far_lies_beside_the_state_once(tmp_path: Path) -> None:
    resume = ResumeFolder(tmp_path / "resume")
    resume.path.mkdir()
    resume.history_path.write_text("step,loss\n3,0.5\n")
    resume.incidents_path.write_text("step,kind\n")
    resume.save(3, piece(3, 6), (1, 2))
    assert not list(resume.path.glob(".step-*/history.csv"))
    resume.save(3, piece(0, 3), (0, 2))
    assert (resume.path / "step-00000003" / "history.csv").read_text() == "step,loss\n3,0.5\n"
    assert (resume.path / "step-00000003" / "incidents.csv").read_text() == "step,kind\n"


def test_a_step_that_is_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    resume = ResumeFolder(tmp_path / "resume")
    for value in (1.0, 2.0):
        resume.save(5, State.copied({"weight": torch.full((2,), value)}, {"value": value}))
    into = {"weight": torch.zeros(2)}
    assert resume.read(5, into) == {"value": 2.0}
    assert into["weight"].tolist() == [2.0, 2.0]


def test_a_checkpoint_is_left_whole_by_a_process_that_believes_it_was_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume, exists = ResumeFolder(tmp_path / "resume"), Path.exists
    resume.save(3, piece(0, 4), (0, 2))

    def moved_before(path: Path, **options: bool) -> bool:
        """Let the other process, which has seen the same files, come first."""
        if path.name == "step-00000003" and len(list(resume.path.glob(".step-*/state-*.json"))) == 2:
            (resume.path / ".step-00000003.partial").rename(path)
        return exists(path, **options)

    monkeypatch.setattr(Path, "exists", moved_before)
    resume.save(3, piece(4, 6), (1, 2))
    monkeypatch.undo()
    assert resume.newest() == 3


@pytest.mark.parametrize(("keep_last", "left"), [(1, [10, 40]), (2, [10, 30, 40]), (3, [10, 20, 30, 40])])
def test_the_newest_checkpoints_and_those_that_are_wanted_are_kept(tmp_path: Path, keep_last: int, left: list[int]) -> None:
    resume = ResumeFolder(tmp_path / "resume")
    for step in (5, 10, 20, 30, 40):
        resume.save(step, State.copied({"weight": torch.zeros(1)}, {}))
    resume.prune(keep_last, lambda step: step == 10)
    assert sorted(int(path.name[5:]) for path in resume.path.glob("step-*")) == left


def test_wanted_checkpoints_survive_the_end_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    resume = ResumeFolder(Path(".sfd/resume/train/key"), Code("c" * 64))
    resume.settle()
    for step in (10, 20):
        resume.save(step, State.copied({"weight": torch.full((1,), float(step))}, {}))
    (kept,) = resume.finish(keep=lambda step: step == 10)
    assert kept == paths.STATE / "checkpoints" / "train" / f"key-{'c' * 8}" / "step-00000010"
    assert kept.is_dir()
    assert [path.name for path in Path(".sfd/resume/train").iterdir()] == []


def test_half_a_deletion_is_finished_by_the_next_run(tmp_path: Path) -> None:
    resume = ResumeFolder(tmp_path / "key")
    doomed = tmp_path / ".key.partial"
    doomed.mkdir()
    with resume.locked():
        assert not doomed.exists()


def test_forgetting_later_snapshots_removes_what_a_kill_left_of_one(tmp_path: Path) -> None:
    folder = tmp_path / "resume" / "snapshots"
    folder.mkdir(parents=True)
    for name in ("step-00000010.safetensors", "step-00000011.safetensors", ".step-00000005.safetensors.abc.partial"):
        (folder / name).touch()
    ResumeFolder(tmp_path / "resume").forget_beyond(10)
    assert [path.name for path in folder.iterdir()] == ["step-00000010.safetensors"]


@pytest.mark.parametrize("number", [0, 1])
def test_a_checkpoint_that_lacks_the_file_of_one_process_is_damaged(tmp_path: Path, number: int) -> None:
    resume = ResumeFolder(tmp_path / "resume")
    resume.save(2, piece(0, 6))
    for part, (first, stop) in enumerate(((0, 3), (3, 6))):
        resume.save(3, piece(first, stop), (part, 2))
    (resume.path / "step-00000003" / f"state-{number:05d}-of-00002.safetensors").unlink()
    assert resume.newest() == 2


def test_a_state_of_weights_in_another_order_of_memory_is_saved(tmp_path: Path) -> None:
    resume = ResumeFolder(tmp_path / "resume")
    resume.save(3, State.copied({"weight": WHOLE.T}, {}))
    into = {"weight": torch.zeros(2, 6)}
    resume.read(3, into)
    assert torch.equal(into["weight"], WHOLE.T)


def test_a_wanted_checkpoint_takes_the_place_of_that_of_an_equal_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (1.0, 2.0):
        resume = ResumeFolder(Path(".sfd/resume/train/key"), Code("c" * 64))
        resume.settle()
        resume.save(10, State.copied({"weight": torch.full((1,), value)}, {"value": value}))
        (kept,) = resume.finish(keep=lambda step: step == 10)
    into = {"weight": torch.zeros(1)}
    assert ResumeFolder(kept.parent).read(10, into) == {"value": 2.0}
    assert into["weight"].item() == 2.0
