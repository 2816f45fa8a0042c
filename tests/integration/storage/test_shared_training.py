"""A training that one machine begins and another ends, through a real S3 server; a machine is a resume folder."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfd_core.experiment.params import Optimisation
from sfd_core.host import resume as resume_module
from sfd_core.host.errors import BusyError, ConfigError, ResourceError
from sfd_core.host.resume import UNKNOWN_CODE, Code, mixed_codes
from sfd_core.host.seeding import generator
from sfd_core.storage import mirror, shared_training
from sfd_core.storage.bucket import Storage
from sfd_core.storage.lease import Lease
from sfd_core.training.batches import BatchOrder
from sfd_core.training.checkpoint import ResumeFolder
from sfd_core.training.history import read_history
from sfd_core.training.loop import TrainingPlan, TrainingResult, run
from sfd_core.training.power_ema import AVERAGES

TIMINGS = {"seconds", "images_per_second"}
PLAN = TrainingPlan(
    "shared",
    Optimisation(
        steps=30, batch_size=4, warmup_steps=0, decay_steps=0, final_rate=1.0, betas=[0.9, 0.999], weight_decay=0.0,
        clip_norm=1.0, precision="float32", checkpoint_every=5, seed=0,
    ),
    1e-2,
    snapshot_steps=(8, 22, 30),
    log_every=2,
)  # fmt: skip


class BrokenError(Exception):
    """Stands for the end of a machine."""


class Fit:
    def __init__(self, ends_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.model, self.ends_at = nn.Linear(4, 4), ends_at
        self.order = BatchOrder(4, 4, seed=0)

    def batch(self, step: int, part: slice) -> dict[str, Tensor]:
        if step == self.ends_at:
            raise BrokenError
        return {"x": torch.randn(4, 4, generator=generator(0, step))[part]}

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": (self.model(batch["x"]) - batch["x"].flip(1)).square().mean()}


@pytest.fixture(autouse=True)
def everyone_asks_for(storage: Storage, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFD_CHECKPOINTS", f"s3://lab/{request.node.name}")
    monkeypatch.setattr(mirror, "SECONDS_BETWEEN_LOOKS", 0.05)


def machine(folder: Path, name: str) -> ResumeFolder:
    return ResumeFolder(folder / name / "train" / "0123abcd")


def train(resume: ResumeFolder, ends_at: int | None = None) -> TrainingResult:
    """Train, and keep an average beside each snapshot as `training.power_ema` does."""

    def average(step: int, weights: Mapping[str, Tensor]) -> None:
        target = resume.path / AVERAGES / f"step-{step:08d}-0.05.safetensors"
        target.parent.mkdir(exist_ok=True)
        save_file(dict(weights), target)

    with shared_training(resume.path, resume.code, resume.settle, resume.drop_damaged) as require_claim:
        return run(Fit(ends_at), PLAN, resume, on_snapshot=average, require_claim=require_claim)


def break_off(resume: ResumeFolder, at: int) -> None:
    """Begin a training whose machine ends at a step."""
    with pytest.raises(BrokenError):
        train(resume, ends_at=at)


def averages(resume: ResumeFolder) -> dict[str, dict[str, Tensor]]:
    return {path.name: load_file(path) for path in sorted((resume.path / AVERAGES).iterdir())}


def curve(resume: ResumeFolder) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in read_history(resume.history_path)]


def test_another_machine_ends_a_training_as_if_it_had_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, alone = (machine(tmp_path, name) for name in ("first", "second", "alone"))
    break_off(first, at=24)
    shared = train(second)
    assert "resuming at step 20, reached by another machine" in capfd.readouterr().err
    monkeypatch.delenv("SFD_CHECKPOINTS")
    whole = train(alone)
    assert curve(second) == curve(alone)
    assert [kept.step for kept in shared.snapshots] == [kept.step for kept in whole.snapshots] == [8, 22, 30]
    for ours, theirs in zip(shared.snapshots, whole.snapshots, strict=True):
        one, other = load_file(ours.path), load_file(theirs.path)
        assert one.keys() == other.keys()
        assert one
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert list(averages(second)) == [f"step-{step:08d}-0.05.safetensors" for step in (8, 22, 30)]
    torch.testing.assert_close(averages(second), averages(alone), rtol=0, atol=0)


def test_a_finished_training_needs_no_storage_that_hears_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    put = Storage.put

    def away(storage: Storage, key: str, *values: Any, **options: Any) -> str:
        if key.endswith("/finished"):
            raise ResourceError("away")
        return put(storage, key, *values, **options)

    monkeypatch.setattr(Storage, "put", away)
    assert train(machine(tmp_path, "first")).steps == PLAN.optimisation.steps
    assert "the storage was not told: away" in capfd.readouterr().err


def test_a_takeover_that_was_broken_off_while_it_fetched_fetches_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, alone = (machine(tmp_path, name) for name in ("first", "second", "alone"))
    break_off(first, at=24)
    download = Storage.download

    def broken(storage: Storage, key: str, path: Path, digest: str | None = None) -> None:
        if "/snapshots/" in key:
            raise ResourceError("away")
        download(storage, key, path, digest)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "download", broken)
        with pytest.raises(ResourceError, match="away"):
            train(second)
    assert list(second.path.glob("step-*"))
    shared = train(second)
    monkeypatch.delenv("SFD_CHECKPOINTS")
    train(alone)
    assert curve(second) == curve(alone)
    assert [kept.step for kept in shared.snapshots] == [8, 22, 30]


def machine_with(folder: Path, name: str, code: str) -> ResumeFolder:
    return ResumeFolder(machine(folder, name).path, Code(code))


def test_another_machine_with_other_code_starts_again_and_the_old_progress_stays(
    tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    first, second, alone = (machine_with(tmp_path, name, name) for name in ("first", "second", "alone"))
    break_off(first, at=24)
    break_off(second, at=7)
    places = {tuple(key.split("/")[-3:-1]) for key in storage.list(request.node.name) if "/step-" in key}
    assert places >= {("first", "step-00000020"), ("second", "step-00000005")}
    train(second)
    monkeypatch.delenv("SFD_CHECKPOINTS")
    train(alone)
    assert curve(second) == curve(alone)


def test_a_finished_training_of_other_code_is_no_work_in_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resume_module, "SECONDS_TO_REPEAT", -1.0)
    train(machine_with(tmp_path, "first", "old"))
    train(machine_with(tmp_path, "second", "new"))
    assert "reached by another machine" not in capfd.readouterr().err
    train(machine_with(tmp_path, "third", "new"))
    assert "resuming at step 30, reached by another machine" in capfd.readouterr().err


def test_unfinished_work_of_other_code_is_asked_about_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume_module, "SECONDS_TO_REPEAT", -1.0)
    break_off(machine_with(tmp_path, "first", "old"), at=24)
    second = machine_with(tmp_path, "second", "new")
    with pytest.raises(ConfigError, match="SFD_RESUME=continue"):
        train(second)
    monkeypatch.setenv("SFD_RESUME", "continue")
    train(second)
    assert mixed_codes(second.path) == {"codes": ["old", "new"]}


def test_what_this_code_did_elsewhere_is_resumed_where_other_code_began_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    break_off(machine_with(tmp_path, "first", "old"), at=7)
    break_off(machine_with(tmp_path, "second", "new"), at=24)
    train(machine_with(tmp_path, "first", "new"))
    assert "resuming at step 20, reached by another machine" in capfd.readouterr().err


def test_checkpoints_whose_files_were_deleted_here_come_back_from_the_storage(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    resume = machine(tmp_path, "first")
    break_off(resume, at=24)
    for file in resume.path.glob("step-*/*"):
        file.unlink()
    train(resume)
    assert "resuming at step 20, reached by another machine" in capfd.readouterr().err


def test_two_machines_never_train_the_same(tmp_path: Path, storage: Storage, request: pytest.FixtureRequest) -> None:
    first, second = machine(tmp_path, "first"), machine(tmp_path, "second")
    with (
        shared_training(first.path, first.code, first.settle, first.drop_damaged),
        pytest.raises(BusyError, match=r"holds the lease .*0123abcd"),
        shared_training(second.path, second.code, second.settle, second.drop_damaged),
    ):
        pass
    assert not second.path.exists()


def test_a_training_ends_at_its_next_checkpoint_once_another_machine_took_it_over(tmp_path: Path) -> None:
    resume = machine(tmp_path, "first")

    def lost() -> None:
        if any(resume.path.glob("step-*")):
            raise ResourceError("another machine has taken over")

    with pytest.raises(ResourceError, match="taken over"):
        run(Fit(), PLAN, resume, require_claim=lost)
    assert [path.name for path in resume.path.glob("step-*")] == ["step-00000005"]


TAKES_A_LEASE = """
import sys, time
from sfd_core.storage.bucket import Storage
from sfd_core.storage.lease import Lease
Lease(Storage("lab"), sys.argv[1]).acquire()
print("taken", flush=True)
time.sleep(99)
"""


def test_the_claim_of_a_process_of_this_machine_that_was_killed_holds_nobody_up(
    storage: Storage, request: pytest.FixtureRequest
) -> None:
    key = f"{request.node.name}/lease"
    with subprocess.Popen([sys.executable, "-c", TAKES_A_LEASE, key], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.kill()
    with Lease(storage, key) as lease:
        lease.check()


def test_without_the_variable_nothing_is_asked_of_any_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SFD_CHECKPOINTS")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with shared_training(tmp_path, UNKNOWN_CODE, lambda: None, lambda: None) as require_claim:
        require_claim()


def test_a_wrong_key_is_told_before_any_step(tmp_path: Path, endpoint: str, credentials: Callable[..., None]) -> None:
    credentials(endpoint, secret="wrong")
    with pytest.raises(ResourceError, match="access denied"):
        train(machine(tmp_path, "first"), ends_at=0)


def test_a_wrong_address_is_told_before_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFD_CHECKPOINTS", "checkpoints")
    with pytest.raises(ConfigError, match="must be s3://"):
        train(machine(tmp_path, "first"), ends_at=0)
