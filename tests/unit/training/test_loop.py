import math
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sfd_core.experiment.params import Optimisation
from sfd_core.host.errors import DataError, NumericsError, Preempted, ResourceError
from sfd_core.host.seeding import generator
from sfd_core.training import guards
from sfd_core.training.batches import BatchOrder
from sfd_core.training.checkpoint import ResumeFolder
from sfd_core.training.ema import EMA
from sfd_core.training.history import read_history
from sfd_core.training.loop import TrainingPlan, run

TIMINGS = {"seconds", "images_per_second"}


class Killed(BaseException):
    """Stands for the end of the process."""


class Denoise:
    """Learn to predict a 4-vector from its noisy version; dropout draws from the global generator."""

    def __init__(self, broken: frozenset[int] = frozenset(), killed_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Dropout(0.1), nn.BatchNorm1d(32), nn.Linear(32, 4))
        self.broken, self.killed_at = broken, killed_at
        self.order = BatchOrder(100, 8, seed=0)

    def batch(self, step: int, part: slice) -> Mapping[str, Tensor]:
        if step == self.killed_at:
            raise Killed
        clean, noise = torch.randn(2, 8, 4, generator=generator(0, step))
        broken = torch.tensor(math.nan if step in self.broken else 0.0)
        return {"clean": clean[part], "noise": noise[part], "broken": broken}

    def loss(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        mse = (self.model(batch["clean"] + 0.1 * batch["noise"]) - batch["clean"]).square().mean()
        size = self.model[0].weight.square().mean()
        return {"loss": mse + 0.1 * size + batch["broken"], "mse": mse, "size": size}


def plan(**changes: Any) -> TrainingPlan:
    values: dict[str, Any] = {
        "steps": 40, "batch_size": 8, "warmup_steps": 5, "decay_steps": 10, "final_rate": 0.1, "betas": [0.9, 0.95],
        "weight_decay": 0.01, "clip_norm": 0.5, "precision": "float32", "checkpoint_every": 7, "seed": 3,
    }  # fmt: skip
    return TrainingPlan("test", Optimisation.model_validate(values | changes), 1e-2, snapshot_steps=(10, 40), log_every=4)


def curve(folder: ResumeFolder) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in read_history(folder.history_path)]


def test_a_run_lowers_the_loss_and_says_what_it_took(tmp_path: Path) -> None:
    folder = ResumeFolder(tmp_path / "resume")
    task, began = Denoise(), time.perf_counter()
    result = run(task, plan(), folder)
    assert 0 < result.seconds <= time.perf_counter() - began
    assert task.model[3].running_mean.abs().sum() > 0, "trained in training mode"
    rows = read_history(folder.history_path)
    assert (result.steps, result.images_seen, result.skipped_steps) == (40, 320, 0)
    assert result.images_per_second == pytest.approx(320 / result.seconds)
    assert [row["step"] for row in rows] == list(range(4, 41, 4))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["learning_rate"] == pytest.approx(1e-3)


def test_logged_terms_are_means_over_the_interval_and_add_up(tmp_path: Path) -> None:
    folder = ResumeFolder(tmp_path / "resume")
    run(Denoise(), plan(), folder)
    assert len(curve(folder)) == 10
    for row in curve(folder):
        assert row["loss"] == pytest.approx(row["mse"] + 0.1 * row["size"], rel=1e-5)
    before = 0.0
    for row in read_history(folder.history_path):
        assert row["images_per_second"] == pytest.approx(4 * 8 / (row["seconds"] - before))
        before = row["seconds"]
    every_step = ResumeFolder(tmp_path / "every step")
    run(Denoise(), replace(plan(), log_every=1), every_step)
    losses = [row["loss"] for row in curve(every_step)]
    assert [row["loss"] for row in curve(folder)] == pytest.approx([sum(losses[k : k + 4]) / 4 for k in range(0, 40, 4)])


def test_settings_of_accelerates_launcher_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, launched = ResumeFolder(tmp_path / "resume"), ResumeFolder(tmp_path / "launched")
    run(Denoise(), plan(), folder)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run(Denoise(), plan(), launched)
    assert curve(launched) == curve(folder)


def test_a_step_whose_gradient_alone_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    class Steep(Denoise):
        def loss(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            terms = super().loss(batch)
            steep = self.model[0].weight.square().sum().mul(0).sqrt()  # 0, with a slope that is no number
            return {**terms, "loss": terms["loss"] + steep * batch["steep"]}

        def batch(self, step: int, part: slice) -> Mapping[str, Tensor]:
            return {**super().batch(step, part), "steep": torch.tensor(float(step == 5))}

    task = Steep()
    with pytest.raises(NumericsError, match="not finite in 10 steps in a row"):
        run(task, plan(), ResumeFolder(tmp_path / "resume"))
    assert all(bool(value.isfinite().all()) for value in task.model.state_dict().values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("killed_at", [3, 12, 39])
def test_a_run_broken_off_and_resumed_equals_the_unbroken_one(tmp_path: Path, killed_at: int, precision: str) -> None:
    unbroken, folder = Denoise(broken=frozenset({8})), ResumeFolder(tmp_path / "unbroken")
    ema = EMA(unbroken.model, 0.99, warmup=True)
    expected = run(unbroken, plan(precision=precision), folder, ema)

    again, broken = ResumeFolder(tmp_path / "again"), Denoise(frozenset({8}), killed_at)
    with pytest.raises(Killed):
        run(broken, plan(precision=precision), again, EMA(broken.model, 0.99, warmup=True))
    resumed = Denoise(broken=frozenset({8}))
    resumed_ema = EMA(resumed.model, 0.99, warmup=True)
    result = run(resumed, plan(precision=precision), again, resumed_ema)

    weights = resumed.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in unbroken.model.state_dict().items())
    assert all(torch.equal(value, resumed_ema.weights()[name]) for name, value in ema.weights().items())
    assert curve(folder) == curve(again)
    assert result.skipped_steps == expected.skipped_steps == 1
    assert [kept.step for kept in result.snapshots] == [10, 40]
    for one, other in zip(expected.snapshots, result.snapshots, strict=True):
        first, second = load_file(one.path), load_file(other.path)
        assert first.keys() == second.keys() == weights.keys()
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def broken_off(folder: Path) -> ResumeFolder:
    """Leave a training that was killed after its checkpoint of step 21."""
    resume = ResumeFolder(folder)
    with pytest.raises(Killed):
        run(Denoise(killed_at=22), plan(), resume)
    return resume


@pytest.mark.parametrize("lost", ["history.csv", "incidents.csv"])
def test_a_lost_curve_comes_back_from_the_checkpoint(tmp_path: Path, lost: str) -> None:
    resume, whole = broken_off(tmp_path / "resume"), ResumeFolder(tmp_path / "whole")
    run(Denoise(), plan(), whole)
    (resume.path / lost).unlink()
    run(Denoise(), plan(), resume)
    assert curve(resume) == curve(whole)
    assert (resume.path / lost).exists()


@pytest.mark.parametrize("lost", ["history.csv", "snapshots/step-00000010.safetensors"])
def test_half_a_training_is_not_continued(tmp_path: Path, lost: str) -> None:
    resume = broken_off(tmp_path / "resume")
    for file in resume.path.rglob(Path(lost).name):
        file.unlink()
    said = "history.csv" if lost == "history.csv" else "the snapshot of step 10"
    with pytest.raises(DataError, match=f"{said} of the training in .* is gone, so its checkpoint of step 21 cannot"):
        run(Denoise(), plan(), resume)


def test_a_checkpoint_of_another_network_is_not_continued(tmp_path: Path) -> None:
    folder, other = broken_off(tmp_path / "resume"), Denoise()
    other.model.append(nn.Linear(4, 4))
    with pytest.raises(DataError, match=r"step 21 in .* does not fit this code .*lacks model\.5\.weight.* rm -r "):
        run(other, plan(), folder)


def test_a_training_whose_folder_is_deleted_ends_and_the_next_one_is_whole(tmp_path: Path) -> None:
    resume = ResumeFolder(tmp_path / "resume")
    task, no_checkpoint = Denoise(), plan(checkpoint_every=40)  # a thread that writes one would race with the deletion
    task.batch = lambda step, part: (shutil.rmtree(resume.path) if step == 18 else None, Denoise.batch(task, step, part))[1]
    with pytest.raises(ResourceError, match=r"history\.csv was deleted while the training ran"):
        run(task, no_checkpoint, resume)
    run(Denoise(), plan(), resume)
    assert [row["step"] for row in curve(resume)] == list(range(4, 41, 4))
    assert [kept.step for kept in resume.snapshots()] == [10, 40]


def test_a_finished_run_started_again_does_nothing_and_returns_the_same(tmp_path: Path) -> None:
    folder = ResumeFolder(tmp_path / "resume")
    first = run(Denoise(), plan(), folder)
    assert run(Denoise(killed_at=0), plan(), folder) == first


def test_snapshots_hold_the_average_where_there_is_one(tmp_path: Path) -> None:
    task, heard = Denoise(), dict[int, dict[str, Tensor]]()
    ema = EMA(task.model, 0.9, warmup=False)
    keep = lambda step, weights: heard.update({step: {name: value.clone() for name, value in weights.items()}})  # noqa: E731
    result = run(task, plan(), ResumeFolder(tmp_path / "resume"), ema, on_snapshot=keep)
    assert [snapshot.step for snapshot in result.snapshots] == [10, 40]
    for snapshot in result.snapshots:
        stored = load_file(snapshot.path)
        assert stored.keys() == heard[snapshot.step].keys() == task.model.state_dict().keys()
        assert all(torch.equal(stored[name], value) for name, value in heard[snapshot.step].items())
    assert not torch.equal(heard[40]["0.weight"], task.model[0].weight)


def test_a_step_that_is_not_finite_changes_nothing_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(Denoise(frozenset({4, 5, 20})), plan(), ResumeFolder(tmp_path / "resume"))
    assert result.skipped_steps == 3
    assert "step 5 skipped" in capsys.readouterr().err
    assert all(math.isfinite(value) for row in curve(ResumeFolder(tmp_path / "resume")) for value in row.values())


def test_ten_steps_in_a_row_that_are_not_finite_stop_the_run(tmp_path: Path) -> None:
    run(Denoise(frozenset(range(6, 15))), plan(), ResumeFolder(tmp_path / "nine"))
    with pytest.raises(NumericsError, match=r"step 16; lower learning_rate 0\.01"):
        run(Denoise(frozenset(range(6, 16))), plan(), ResumeFolder(tmp_path / "ten"))


def test_gradients_are_clipped_to_the_norm(tmp_path: Path) -> None:
    free, tight = Denoise(), Denoise()
    run(free, plan(clip_norm=0.0), ResumeFolder(tmp_path / "free"))
    run(tight, plan(clip_norm=1e-12), ResumeFolder(tmp_path / "tight"))
    start = Denoise().model[0].weight
    # Adam's epsilon is far above a gradient of 1e-12, so such a step moves next to nothing but its weight decay
    assert (tight.model[0].weight - start).norm() < 0.05 * (free.model[0].weight - start).norm()


def test_global_random_numbers_are_left_as_they_were(tmp_path: Path) -> None:
    task = Denoise()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run(task, plan(steps=15), ResumeFolder(tmp_path / "resume"))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("checkpoint_every", "largest", "step"), [(7, 4000, 7), (99, 1500, 10)])
def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path, checkpoint_every: int, largest: int, step: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))  # no file may grow beyond so many bytes
    try:
        with pytest.raises(ResourceError, match=rf"step {step} cannot be written .*free space there and start again"):
            run(Denoise(), plan(checkpoint_every=checkpoint_every), ResumeFolder(tmp_path / "resume"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert run(Denoise(), plan(), ResumeFolder(tmp_path / "resume")).steps == 40


@pytest.mark.parametrize("asked_at", range(1, 9))
def test_a_run_asked_to_stop_has_a_checkpoint_although_it_hears_of_it_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_at: int
) -> None:
    class Asked(Denoise):
        def loss(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            if int(batch["step"]) == asked_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(batch)

        def batch(self, step: int, part: slice) -> Mapping[str, Tensor]:
            return {**super().batch(step, part), "step": torch.tensor(step)}

    monkeypatch.setattr(guards.StepNumbers, "due", late)
    folder = ResumeFolder(tmp_path / "resume")
    with pytest.raises(Preempted) as caught:
        run(Asked(), plan(), folder)
    assert f"a checkpoint of step {folder.newest()} is written" in str(caught.value)


def late(numbers: guards.StepNumbers) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the numbers of steps as late as on a GPU."""
    while len(numbers._coming) > guards.STEPS_LATE:
        yield numbers._next()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_resumed_run_equals_the_unbroken_one_on_a_gpu(tmp_path: Path) -> None:
    weights = []
    for name, killed_at in (("unbroken", None), ("again", 12)):
        if killed_at is not None:
            with pytest.raises(Killed):
                run(Denoise(killed_at=killed_at), plan(), ResumeFolder(tmp_path / name))
        task = Denoise()
        run(task, plan(), ResumeFolder(tmp_path / name))
        weights.append(task.model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
