from typing import Any

import pytest
import torch
from torch import nn

from sfd_core.experiment.params import Optimisation
from sfd_core.host.errors import ConfigError
from sfd_core.training.optim import Muon, WeightOptimizer, learning_rate_at

FINITE = torch.tensor(True)


def optimisation(**changes: Any) -> Optimisation:
    values = {
        "steps": 100, "batch_size": 1, "warmup_steps": 10, "decay_steps": 20, "final_rate": 0.1, "betas": [0.9, 0.95],
        "weight_decay": 0.01, "clip_norm": 0.0, "precision": "float32", "checkpoint_every": 10, "seed": 0,
    }  # fmt: skip
    return Optimisation.model_validate(values | changes)


def test_without_warm_up_and_decay_the_rate_is_constant() -> None:
    flat = optimisation(warmup_steps=0, decay_steps=0)
    assert {learning_rate_at(step, 0.5, flat) for step in range(100)} == {0.5}


def test_the_optimizer_leaves_frozen_parameters_out_and_takes_the_given_values() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    group = WeightOptimizer(dict(model.named_parameters()), 0.1, optimisation()).adamw.param_groups[0]
    assert group["params"] == [model.weight]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.1, (0.9, 0.95), 0.01)


def test_one_step_without_decay_moves_every_weight_by_the_learning_rate() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = WeightOptimizer({"w": weight}, 0.1, optimisation(weight_decay=0.0))
    weight.grad = torch.tensor([1.0, -2.0, 30.0])
    optimizer.step(FINITE)
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.1, 0.1, -0.1]))


@pytest.mark.parametrize(
    ("step", "share"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (79, 1.0), (80, 0.99446), (89, 0.55), (98, 0.10554), (99, 0.1), (500, 0.1)],
)
def test_the_rate_at_each_corner(step: int, share: float) -> None:
    """The decay is 0.1 + 0.9 (1 + cos(pi k / 20)) / 2 at its k-th step."""
    assert learning_rate_at(step, 2.0, optimisation()) == pytest.approx(2.0 * share, rel=1e-5)


def test_moments_are_zero_before_the_first_step_and_the_optimizers_own_afterwards() -> None:
    model = nn.Linear(2, 1)
    named = dict(model.named_parameters())
    optimizer = WeightOptimizer(named, 0.1, optimisation())
    tensors = optimizer.tensors()
    assert set(tensors) == {f"{kind}.{name}" for kind in ("step", "exp_avg", "exp_avg_sq") for name in ("weight", "bias")}
    assert all(not value.any() for value in tensors.values())
    assert {name: tuple(value.shape) for name, value in tensors.items() if name.startswith("exp_avg.")} == {
        "exp_avg.weight": (1, 2),
        "exp_avg.bias": (1,),
    }
    model(torch.tensor([[1.0, 2.0]])).sum().backward()
    optimizer.step(FINITE)
    assert tensors["step.weight"] == tensors["step.bias"] == 1
    torch.testing.assert_close(tensors["exp_avg.weight"], torch.tensor([[0.1, 0.2]]))
    torch.testing.assert_close(tensors["exp_avg_sq.weight"], 0.05 * torch.tensor([[1.0, 4.0]]))
    again = optimizer.tensors()
    assert all(again[name] is value for name, value in tensors.items())


class TwoBlocks(nn.Module):
    """A network with two hidden matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(3, 4), nn.Linear(4, 1)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        result: torch.Tensor = self.out(x)
        return result


def muon_step(model: nn.Module, optimizer: WeightOptimizer, seed: int, finite: bool = True) -> None:
    optimizer.zero_grad()
    model(torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
    optimizer.step(torch.tensor(finite))


def two_blocks() -> tuple[nn.Module, WeightOptimizer]:
    torch.manual_seed(0)
    model = TwoBlocks()
    return model, WeightOptimizer(dict(model.named_parameters()), 0.1, optimisation(optimizer="muon", weight_decay=0.0))


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    model, optimizer = two_blocks()
    matrices = {"blocks.0.weight", "blocks.1.weight"}
    tensors = optimizer.tensors()
    assert {name for name in tensors if name.startswith("momentum_buffer")} == {f"momentum_buffer.{name}" for name in matrices}
    adamw = {name.removeprefix("exp_avg.") for name in tensors if name.startswith("exp_avg.")}
    assert adamw == {name for name, _ in model.named_parameters()} - matrices
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    muon_step(model, optimizer, 1)
    moved = {name: (value.detach() - before[name]) for name, value in model.named_parameters()}
    gradients = dict(model.named_parameters())
    for name in matrices:
        # singular values of an update become nearly one size: 0.2 sqrt(4) of the rate, as AdamW's root mean square is
        values, raw = torch.linalg.svdvals(moved[name]), torch.linalg.svdvals(gradients[name].grad)
        assert values[0].item() == pytest.approx(0.1 * 0.2 * 4**0.5, rel=0.3)
        assert values[2] / values[0] > 0.5
        assert values[2] / values[0] > 3 * raw[2] / raw[0]
    torch.testing.assert_close(moved["embed.weight"].abs(), torch.full((4, 3), 0.1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(384, 128), (128, 341), (128, 128)])
def test_muon_is_torchs_in_higher_precision(shape: tuple[int, int]) -> None:
    source = torch.Generator().manual_seed(0)
    ours, theirs = (nn.Parameter(torch.zeros(shape)) for _ in range(2))
    muon = Muon([ours], lr=0.01, weight_decay=0.1)
    known = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=source)
        theirs.grad = ours.grad.clone()
        muon.step()
        known.step()  # type: ignore[no-untyped-call]
    assert (ours - theirs).norm() / theirs.norm() < 0.02


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    model, optimizer = two_blocks()
    muon_step(model, optimizer, 1)
    kept = [value.clone() for value in (*model.state_dict().values(), *optimizer.tensors().values())]
    muon_step(model, optimizer, 2, finite=False)
    assert all(
        torch.equal(*pair) for pair in zip(kept, (*model.state_dict().values(), *optimizer.tensors().values()), strict=True)
    )


def test_muon_and_adamw_go_on_from_anothers_state() -> None:
    unbroken, (model, optimizer) = two_blocks(), two_blocks()
    for seed in range(2):
        muon_step(*unbroken, seed)
        muon_step(model, optimizer, seed)
    again, continued = two_blocks()
    again.load_state_dict(model.state_dict())
    for name, value in continued.tensors().items():
        value.copy_(optimizer.tensors()[name])
    for seed in range(2, 4):
        muon_step(*unbroken, seed)
        muon_step(again, continued, seed)
    assert all(torch.equal(*pair) for pair in zip(unbroken[0].parameters(), again.parameters(), strict=True))


def test_muon_without_hidden_matrices_is_refused() -> None:
    with pytest.raises(ConfigError, match="no blocks with 2-D weights; set it to adamw"):
        WeightOptimizer(dict(nn.Linear(2, 2).named_parameters()), 0.1, optimisation(optimizer="muon"))
