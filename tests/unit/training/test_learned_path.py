"""A learned path: monotone, from noise to data, and drawn to where it costs less."""

from pathlib import Path

import pytest
import torch
from small_stages import OPTIMISATION
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributions import Normal, SigmoidTransform, TransformedDistribution

from sfd_core.diffusion.schedule import Schedule
from sfd_core.experiment.params import LearnedSchedule
from sfd_core.experiment.sizes import ModelSize
from sfd_core.models.denoisers.blocks import blocks_of
from sfd_core.models.denoisers.lightningdit import LightningDiT
from sfd_core.training.loop import PLAIN_ENGINE
from sfd_core.training.parallel import Parallel
from sfd_core.training.tasks.learned_path import LearnedPathTask, PathLearner

PROBE = {"size": "tiny", "patch": 2, "semantic": "vae", "learning_rate": 0.01, "steps": 1, "seed": 0}
SCHEDULE = LearnedSchedule.model_validate({**PROBE, "kind": "learned", "semantic_weight": 1.0, "knots": 4, "kinetic": 0.0})


class KnowsOrder(nn.Module):
    """Errs on texture while semantics are noisy, whatever its input; on semantics always alike."""

    def forward(self, x: torch.Tensor, t_tex: torch.Tensor, t_sem: torch.Tensor, labels: torch.Tensor) -> object:
        errors = torch.stack([2 * (1 - t_sem), torch.full_like(t_sem, 0.1)], dim=1)[:, :, None, None]
        return type("Output", (), {"prediction": errors.expand(-1, -1, 2, 2)})()


class FixedBatches:
    """Latents that are zero, so that the velocity target is zero, too."""

    class order:  # noqa: N801 (an attribute of the real one)
        batch_size = 512

    class composite:  # noqa: N801
        n_texture = 1

    def batch(self, step: int, part: slice) -> dict[str, torch.Tensor]:
        rows = len(range(512)[part])
        zeros = torch.zeros(rows, 2, 2, 2)
        return {"x1": zeros, "noise": zeros, "labels": torch.zeros(rows, dtype=torch.long)}

    def generator(self, purpose: str, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(step)


def learned(kinetic: float, steps: int = 150) -> list[list[float]]:
    model = PathLearner(KnowsOrder(), 4)  # type: ignore[arg-type]
    task = LearnedPathTask(model, FixedBatches(), SCHEDULE.model_copy(update={"kinetic": kinetic}))  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        task.loss(task.batch(step, slice(None)))["loss"].backward()
        optimizer.step()
    return model.corners()


def test_the_path_begins_straight_and_is_a_schedule() -> None:
    model = PathLearner(KnowsOrder(), 4)  # type: ignore[arg-type]
    assert torch.tensor(model.corners()).flatten().tolist() == pytest.approx([k / 4 for k in range(5) for _ in "ab"])
    with torch.no_grad():
        model.increments.copy_(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    path = Schedule.table(model.corners())
    u = torch.linspace(0, 1 - 1e-6, 101)
    tau, slope = model.progress(u)
    assert bool((tau.diff(dim=1) > 0).all())
    numeric = tau.double().diff(dim=1) / u.double().diff()
    torch.testing.assert_close(slope.double().mean(dim=1), torch.ones(2, dtype=torch.float64), atol=0.02, rtol=0)
    assert (numeric - slope[:, 1:].double()).abs().median() < 1e-3
    for k, corner in enumerate(model.corners()[:-1]):
        assert tau[:, 25 * k].tolist() == pytest.approx(corner, abs=1e-4)
    assert path.end <= 2


def test_a_model_in_shards_has_the_same_path(tmp_path: Path) -> None:
    model = PathLearner(KnowsOrder(), 4)  # type: ignore[arg-type]
    expected = model.corners()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        assert model.corners() == expected
    finally:
        distributed.destroy_process_group()


def test_semantics_are_drawn_ahead_where_texture_needs_them_and_kinetic_energy_holds_them_back() -> None:
    free, held = learned(0.0), learned(3.0)
    assert free[2][1] > free[2][0] + 0.3
    assert 0 < held[2][1] - held[2][0] < (free[2][1] - free[2][0]) / 2


def test_the_loss_is_the_error_by_the_density_of_training_times_and_the_slope_of_each_part() -> None:
    model = PathLearner(KnowsOrder(), 4)  # type: ignore[arg-type]
    with torch.no_grad():
        model.increments.copy_(torch.tensor([[0.0, 0.5, 1.0, 0.0], [1.0, 0.0, 0.2, 0.5]]))
    schedule = SCHEDULE.model_copy(update={"semantic_weight": 0.25, "kinetic": 0.5})
    task = LearnedPathTask(model, FixedBatches(), schedule)  # type: ignore[arg-type]
    u = torch.linspace(0.1, 0.9, 512)
    terms = task.loss(task.batch(0, slice(None)) | {"u": u})
    tau, slope = model.progress(u)
    logit_normal = TransformedDistribution(Normal(0.0, 1.0), SigmoidTransform())
    weights = logit_normal.log_prob(tau).exp() * slope
    expected = {
        "texture": (weights[0] * (2 * (1 - tau[1])) ** 2).mean(),
        "semantic": (weights[1] * 0.1**2).mean(),
        "kinetic": (slope[0] ** 2 + slope[1] ** 2).mean(),
    }
    expected["loss"] = expected["texture"] + 0.25 * expected["semantic"] + 0.5 * expected["kinetic"]
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=name)


def test_the_engine_reaches_the_denoiser_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    model = PathLearner(LightningDiT(ModelSize(2, 32, 2), 2, 2, 1, 0, 2), 4)
    task = LearnedPathTask(model, FixedBatches(), SCHEDULE)  # type: ignore[arg-type]
    assert blocks_of(model) == list(model.denoiser.blocks)  # what FSDP shards
    Parallel("path", task, OPTIMISATION, PLAIN_ENGINE)
    assert not model.denoiser.activation_checkpointing
    Parallel("path", task, OPTIMISATION, PLAIN_ENGINE.model_copy(update={"activation_checkpointing": True, "compile": True}))
    assert model.denoiser.activation_checkpointing
    assert all(block._compiled_call_impl is not None for block in model.denoiser.blocks)
