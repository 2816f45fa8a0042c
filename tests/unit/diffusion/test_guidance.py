from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from sfd_core.config import GuidanceParams
from sfd_core.diffusion.guidance import VelocityFn, autoguidance, cfg, oracle
from sfd_core.diffusion.schedule import AsyncSchedule, LocalTimes
from sfd_core.diffusion.solver import SolverSettings, integrate

N, TEXTURE, SEMANTIC, SIDE = 4, 3, 2, 4
OFF = GuidanceParams(scale=1.0, interval=[0.0, 1.0])


def guide(scale: float, low: float = 0.0, high: float = 1.0) -> GuidanceParams:
    return GuidanceParams(scale=scale, interval=[low, high])


def field(seed: int) -> VelocityFn:
    weight = torch.randn(TEXTURE + SEMANTIC, TEXTURE + SEMANTIC, generator=torch.Generator().manual_seed(seed))

    def velocity(x: Tensor, times: LocalTimes) -> Tensor:
        return torch.einsum("dc,nchw->ndhw", weight, x).tanh() + times.t_tex[:, None, None, None]

    return velocity


def refuses(x: Tensor, times: LocalTimes) -> Tensor:
    raise AssertionError("the reference network was asked although no weight uses it")


def state() -> Tensor:
    return torch.randn(N, TEXTURE + SEMANTIC, SIDE, SIDE, generator=torch.Generator().manual_seed(9))


def times(t_tex: float, t_sem: float) -> LocalTimes:
    return LocalTimes(torch.full((N,), t_tex), torch.full((N,), t_sem))


@pytest.mark.parametrize("build", [cfg, autoguidance])
def test_scale_one_is_the_main_velocity_to_the_last_bit_and_costs_nothing(build: Callable[..., VelocityFn]) -> None:
    main = field(0)
    guided = build(main, refuses, OFF, OFF, TEXTURE)
    assert torch.equal(guided(state(), times(0.3, 0.6)), main(state(), times(0.3, 0.6)))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 4.0])
def test_the_formula_holds_for_each_part_with_its_own_weight(scale: float) -> None:
    main, reference, x, t = field(0), field(1), state(), times(0.3, 0.6)
    v, v_u = main(x, t), reference(x, t)
    guided = cfg(main, reference, guide(scale), guide(2.0), TEXTURE)(x, t)
    assert torch.allclose(guided[:, :TEXTURE], (v_u + scale * (v - v_u))[:, :TEXTURE], atol=1e-6)
    assert torch.allclose(guided[:, TEXTURE:], (2 * v - v_u)[:, TEXTURE:], atol=1e-6)


def test_scale_zero_is_the_reference() -> None:
    main, reference, x, t = field(0), field(1), state(), times(0.3, 0.6)
    assert torch.equal(cfg(main, reference, guide(0.0), guide(0.0), TEXTURE)(x, t), reference(x, t))


def test_one_part_can_be_guided_alone() -> None:
    main, reference, x, t = field(0), field(1), state(), times(0.3, 0.6)
    guided = cfg(main, reference, guide(3.0), OFF, TEXTURE)(x, t)
    assert torch.equal(guided[:, TEXTURE:], main(x, t)[:, TEXTURE:])
    assert not torch.allclose(guided[:, :TEXTURE], main(x, t)[:, :TEXTURE])


def test_intervals_are_on_each_parts_own_time() -> None:
    main, reference, x = field(0), field(1), state()
    guided = cfg(main, reference, guide(3.0, 0.2, 0.5), guide(3.0, 0.5, 0.8), TEXTURE)
    for t_tex, t_sem in [(0.1, 0.4), (0.3, 0.4), (0.1, 0.6), (0.3, 0.6), (0.6, 0.9)]:
        t = times(t_tex, t_sem)
        moved = (guided(x, t) - main(x, t)).abs().amax((0, 2, 3)) > 0
        assert bool(moved[:TEXTURE].all()) == bool(moved[:TEXTURE].any()) == (0.2 <= t_tex <= 0.5)
        assert bool(moved[TEXTURE:].all()) == bool(moved[TEXTURE:].any()) == (0.5 <= t_sem <= 0.8)
    unguided = cfg(main, refuses, guide(3.0, 0.2, 0.5), guide(3.0, 0.5, 0.8), TEXTURE)
    assert torch.equal(unguided(x, times(0.6, 0.9)), main(x, times(0.6, 0.9)))


def test_rows_at_other_times_do_not_disturb_one_another() -> None:
    main, reference, x = field(0), field(1), state()
    mixed = LocalTimes(torch.tensor([0.1, 0.3, 0.3, 0.9]), torch.tensor([0.4, 0.6, 0.6, 1.0]))
    guided = cfg(main, reference, guide(3.0, 0.2, 0.5), OFF, TEXTURE)
    for row in range(N):
        alone = LocalTimes(mixed.t_tex[row : row + 1], mixed.t_sem[row : row + 1])
        assert torch.allclose(guided(x, mixed)[row], guided(x[row : row + 1], alone)[0], atol=1e-6)


def test_a_model_of_texture_alone_ignores_the_semantic_weight() -> None:
    main, reference = (lambda x, t: x), (lambda x, t: -x)
    x = state()[:, :TEXTURE]
    assert torch.equal(cfg(main, refuses, OFF, guide(3.0), TEXTURE)(x, times(0.5, 0.5)), x)
    assert torch.equal(cfg(main, reference, guide(2.0), guide(9.0), TEXTURE)(x, times(0.5, 0.5)), 3 * x)


@pytest.mark.parametrize("delta_t", [0.0, 0.3, 1.0])
def test_guided_sampling_with_scale_one_equals_unguided_sampling(delta_t: float) -> None:
    schedule, settings = AsyncSchedule(delta_t), SolverSettings("euler", 12)
    plain = integrate(field(0), state(), schedule, TEXTURE, settings)
    guided = integrate(cfg(field(0), field(1), OFF, OFF, TEXTURE), state(), schedule, TEXTURE, settings)
    assert torch.equal(plain.x, guided.x)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_oracle_brings_semantics_to_the_real_latent_and_leaves_texture_to_the_model(
    solver: Literal["euler", "heun"],
) -> None:
    x0 = state()
    real = torch.randn(N, SEMANTIC, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    seen = []
    settings = SolverSettings(solver, 40)
    solution = integrate(
        oracle(field(0), x0, real, TEXTURE), x0, AsyncSchedule(0.3), TEXTURE, settings, lambda u, x, data: seen.append(data)
    )
    assert torch.allclose(solution.x[:, TEXTURE:], real, atol=1e-5)
    assert all(torch.allclose(data[:, TEXTURE:], real, atol=1e-5) for data in seen)
    free = integrate(field(0), x0, AsyncSchedule(0.3), TEXTURE, settings)
    assert not torch.allclose(free.x[:, :TEXTURE], solution.x[:, :TEXTURE])
