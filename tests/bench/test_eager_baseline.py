"""The baseline of the training benchmark computes what the product computes, and trains."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.operations import AVERAGE, ELEMENTWISE, MATRIX, OPTIMISER
from bench.side_by_side import break_down_eager, break_down_engine, interleave
from torch.testing import assert_close

from infra.bench.workload import Workload, eager_steps
from sfd_core.host.seeding import generator

SMALL = Workload("tiny", batch=3, texture=4, semantic=2, grid=4, patch=2, images=8)


@pytest.mark.parametrize("patch", [1, 2])
def test_both_networks_give_the_same_output_and_gradients(patch: int) -> None:
    workload = replace(SMALL, patch=patch)
    ours, eager = workload.network().train(), workload.eager_network().train()
    source = generator(0)
    x = torch.randn(3, workload.channels, workload.grid, workload.grid, generator=source)
    t_tex, t_sem = torch.rand(2, 3, generator=source)
    labels = torch.tensor([0, 7, 10])
    outputs = ours(x, t_tex, t_sem, labels).prediction, eager(x, t_tex, t_sem, labels)
    assert outputs[0].abs().mean() > 0.1
    assert_close(*outputs, rtol=1e-4, atol=1e-5)
    for output in outputs:
        (output * x).mean().backward()
    gradients = {name: parameter.grad for name, parameter in eager.named_parameters() if parameter.requires_grad}
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            assert gradients[name].abs().max() > 0, name
            assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_the_baseline_lowers_its_loss(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 (what the baseline mirrors images by)
        losses = list(itertools.islice(eager_steps(replace(SMALL, learning_rate=1e-2), tmp_path), 120))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_both_trainings_are_timed_in_turns(tmp_path: Path) -> None:
    rates = interleave(SMALL, tmp_path, rounds=2, steps=1)
    assert len(rates.ratios) == 2
    assert min(rates.eager + rates.engine) > 0


def test_both_trainings_are_taken_apart_and_differ_where_the_engine_saves(tmp_path: Path) -> None:
    eager = break_down_eager(SMALL, tmp_path / "eager", steps=1)
    engine = break_down_engine(SMALL, tmp_path / "engine", steps=1)
    assert engine.work[MATRIX].flops == pytest.approx(eager.work[MATRIX].flops, rel=0.01)
    trained = 4 * sum(parameter.numel() for parameter in SMALL.network().parameters() if parameter.requires_grad)
    # gradient read; weight and both moments read and written
    assert engine.work[OPTIMISER].traffic == pytest.approx(7 * trained, rel=0.05)
    assert engine.work[AVERAGE].traffic == pytest.approx(3 * trained, rel=0.05)
    for group in (ELEMENTWISE, OPTIMISER, AVERAGE):
        assert engine.work[group].traffic < eager.work[group].traffic
    assert all(part.seconds[group] > 0 for part in (eager, engine) for group in part.work)
