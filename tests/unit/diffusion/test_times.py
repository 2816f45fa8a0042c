from typing import Any

import pytest
import torch
from denoisers import variant

from sfd_core.diffusion.times import TrainingTimes, draw_times

MANY = 100_000
OWN = {"kind": "own", "semantic_share": 0.4, "handover_noise": 0.25, "absent": 0.0}


def drawn(n: int = MANY, seed: int = 1, **changes: Any) -> TrainingTimes:
    return draw_times(n, variant(**changes), torch.Generator().manual_seed(seed))


def logit(t: torch.Tensor) -> torch.Tensor:
    return torch.logit(t.double())


@pytest.mark.parametrize("delta_t", [0.0, 0.3])
def test_global_times_are_logit_normal_over_both_parts_ways(delta_t: float) -> None:
    times = drawn(1000, delta_t=delta_t)
    u = (1 + delta_t) * torch.sigmoid(torch.randn(1000, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(times.t_tex, (u - delta_t).clamp(min=0))
    assert torch.equal(times.t_sem, u.clamp(max=1))
    assert times.active is None


def test_clamped_parts_can_be_left_out_of_the_loss() -> None:
    times = drawn(delta_t=0.3, mask_clamped=True)
    assert times.active is not None
    assert torch.equal(times.active.texture, times.t_tex > 0)
    assert torch.equal(times.active.semantic, times.t_sem < 1)


@pytest.mark.parametrize("times", [{"kind": "global"}, OWN, {"kind": "independent", "absent": 0.2}])
def test_drawing_depends_on_the_generator_alone(times: dict[str, Any]) -> None:
    first, second, other = (drawn(64, seed, times=times) for seed in (7, 7, 8))
    assert torch.equal(first.t_tex, second.t_tex)
    assert torch.equal(first.t_sem, second.t_sem)
    assert not torch.equal(first.t_tex, other.t_tex)
    assert first.t_tex.dtype == first.t_sem.dtype == torch.float32


def test_independent_times_are_both_logit_normal_and_have_nothing_in_common() -> None:
    times = drawn(times={"kind": "independent", "absent": 0.0})
    values = torch.stack([logit(times.t_tex), logit(times.t_sem)])
    assert torch.allclose(values.mean(1), torch.zeros(2, dtype=torch.float64), atol=0.02)
    assert torch.allclose(values.std(1), torch.ones(2, dtype=torch.float64), atol=0.02)
    assert abs(torch.corrcoef(values)[0, 1]) < 0.02
    assert times.active is None


def test_absent_semantics_are_noise_and_not_in_the_loss() -> None:
    times = drawn(times={"kind": "independent", "absent": 0.15})
    assert times.active is not None
    assert bool(times.active.texture.all())
    assert torch.equal(times.active.semantic, times.t_sem > 0)
    assert (times.t_sem == 0).double().mean().item() == pytest.approx(0.15, abs=0.005)


def test_in_a_cascade_each_image_trains_one_part_at_a_logit_normal_time_of_its_own() -> None:
    times = drawn(delta_t=1.0, times=OWN | {"absent": 0.15})
    assert times.active is not None
    semantic = times.active.semantic
    assert torch.equal(times.active.texture, ~semantic)
    assert semantic.double().mean().item() == pytest.approx(0.4, abs=0.005)
    assert bool((times.t_tex[semantic] == 0).all())
    handed_over = times.t_sem[~semantic]
    absent = handed_over == 0
    assert absent.double().mean().item() == pytest.approx(0.15, abs=0.005)
    assert handed_over[~absent].min().item() == pytest.approx(0.75, abs=1e-3)
    assert handed_over[~absent].max().item() == pytest.approx(1.0, abs=1e-3)
    assert handed_over[~absent].mean().item() == pytest.approx(0.875, abs=2e-3)
    for own in (times.t_sem[semantic], times.t_tex[~semantic]):
        assert logit(own).mean().item() == pytest.approx(0, abs=0.02)
        assert logit(own).std().item() == pytest.approx(1, abs=0.02)


def test_own_times_lie_on_the_path_when_nothing_is_added_to_what_is_handed_over() -> None:
    times = drawn(1000, delta_t=0.3, times=OWN | {"handover_noise": 0.0})
    assert times.active is not None
    semantic = times.active.semantic
    assert torch.allclose(times.t_tex[semantic], (times.t_sem[semantic] - 0.3).clamp(min=0), atol=1e-6)
    assert torch.allclose(times.t_sem[~semantic], (times.t_tex[~semantic] + 0.3).clamp(max=1), atol=1e-6)
