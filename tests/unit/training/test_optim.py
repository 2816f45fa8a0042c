from typing import Any

import pytest
import torch
from torch import nn

from sfd_core.experiment.params import Optimisation
from sfd_core.training.optim import build_optimizer, learning_rate_at, optimizer_tensors


def optimisation(**changes: Any) -> Optimisation:
    values = {
        "steps": 100, "batch_size": 1, "warmup_steps": 10, "decay_steps": 20, "final_rate": 0.1, "betas": [0.9, 0.95],
        "weight_decay": 0.01, "clip_norm": 0.0, "precision": "float32", "checkpoint_every": 10, "seed": 0,
    }  # fmt: skip
    return Optimisation.model_validate(values | changes)


def test_the_rate_warms_up_stays_and_decays_to_its_final_share() -> None:
    rates = [learning_rate_at(step, 2.0, optimisation()) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:80] == [2.0] * 71
    assert rates[:10] == sorted(rates[:10])
    assert rates[79:] == sorted(rates[79:], reverse=True)
    assert rates[89] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert rates[99] == pytest.approx(0.2)


def test_without_warm_up_and_decay_the_rate_is_constant() -> None:
    flat = optimisation(warmup_steps=0, decay_steps=0)
    assert {learning_rate_at(step, 0.5, flat) for step in range(100)} == {0.5}


def test_the_optimizer_leaves_frozen_parameters_out_and_takes_the_given_values() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    group = build_optimizer(model.parameters(), 0.1, optimisation()).param_groups[0]
    assert group["params"] == [model.weight]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.1, (0.9, 0.95), 0.01)


def test_one_step_without_decay_moves_every_weight_by_the_learning_rate() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = build_optimizer([weight], 0.1, optimisation(weight_decay=0.0))
    weight.grad = torch.tensor([1.0, -2.0, 30.0])
    optimizer.step()
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
    optimizer = build_optimizer(named.values(), 0.1, optimisation())
    tensors = optimizer_tensors(optimizer, named)
    assert set(tensors) == {f"{kind}.{name}" for kind in ("step", "exp_avg", "exp_avg_sq") for name in ("weight", "bias")}
    assert all(not value.any() for value in tensors.values())
    assert {name: tuple(value.shape) for name, value in tensors.items() if name.startswith("exp_avg.")} == {
        "exp_avg.weight": (1, 2),
        "exp_avg.bias": (1,),
    }
    model(torch.tensor([[1.0, 2.0]])).sum().backward()
    optimizer.step()
    assert tensors["step.weight"] == tensors["step.bias"] == 1
    torch.testing.assert_close(tensors["exp_avg.weight"], torch.tensor([[0.1, 0.2]]))
    torch.testing.assert_close(tensors["exp_avg_sq.weight"], 0.05 * torch.tensor([[1.0, 4.0]]))
    again = optimizer_tensors(optimizer, named)
    assert all(again[name] is value for name, value in tensors.items())


def test_an_optimizer_filled_with_anothers_moments_goes_on_as_that_one() -> None:
    weights = []
    for resumed in (False, True):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.ones(3))
        optimizer = build_optimizer([weight], 0.1, optimisation())
        for step in range(4):
            if resumed and step == 2:
                kept = {name: value.clone() for name, value in optimizer_tensors(optimizer, {"w": weight}).items()}
                weight = nn.Parameter(weight.detach().clone())
                optimizer = build_optimizer([weight], 0.1, optimisation())
                for name, value in optimizer_tensors(optimizer, {"w": weight}).items():
                    value.copy_(kept[name])
            weight.grad = torch.tensor([1.0, -2.0, 0.5]) * (step + 1)
            optimizer.step()
        weights.append(weight.detach())
    assert torch.equal(*weights)
