from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from sfd_core.diffusion.guidance import VelocityFn, _weight, autoguidance, cfg, internal, oracle, semantic_guidance
from sfd_core.diffusion.schedule import LocalTimes, Phase, Schedule, SharedTimes
from sfd_core.diffusion.solver import SolverSettings, integrate
from sfd_core.experiment.params import GuidanceParams

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


def times(t_tex: float, t_sem: float, phase: Phase = Phase.BOTH) -> SharedTimes:
    return SharedTimes(torch.full((N,), t_tex), torch.full((N,), t_sem), t_tex, t_sem, phase)


def counting(velocity: VelocityFn, calls: list[float]) -> VelocityFn:
    def counted(x: Tensor, times: SharedTimes) -> Tensor:
        calls.append(times.semantic)
        return velocity(x, times)

    return counted


def guided_whatever_moves(main: VelocityFn, reference: VelocityFn, w_texture: float, w_semantic: float) -> VelocityFn:
    """The formula at every time for both parts, and the reference asked every time."""

    def guided(x: Tensor, times: SharedTimes) -> Tensor:
        v, v_r = main(x, times), reference(x, times)
        weight = torch.tensor([w_texture] * TEXTURE + [w_semantic] * SEMANTIC)[:, None, None]
        return torch.where(weight == 1, v, v_r + weight * (v - v_r))

    return guided


def cfg_of(main: VelocityFn, reference: VelocityFn, *weights: Any) -> VelocityFn:
    return cfg(main, lambda x, times: (main(x, times), reference(x, times)), *weights)


@pytest.mark.parametrize("build", [cfg_of, autoguidance])
def test_scale_one_is_the_main_velocity_to_the_last_bit_and_costs_nothing(build: Callable[..., VelocityFn]) -> None:
    main = field(0)
    guided = build(main, refuses, OFF, OFF, TEXTURE)
    assert torch.equal(guided(state(), times(0.3, 0.6)), main(state(), times(0.3, 0.6)))


@pytest.mark.parametrize("build", [cfg_of, autoguidance])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 4.0])
def test_the_formula_holds_for_each_part_with_its_own_weight(build: Callable[..., VelocityFn], scale: float) -> None:
    main, reference, x, t = field(0), field(1), state(), times(0.3, 0.6)
    v, v_u = main(x, t), reference(x, t)
    guided = build(main, reference, guide(scale), guide(2.0), TEXTURE)(x, t)
    assert torch.allclose(guided[:, :TEXTURE], (v_u + scale * (v - v_u))[:, :TEXTURE], atol=1e-6)
    assert torch.allclose(guided[:, TEXTURE:], (2 * v - v_u)[:, TEXTURE:], atol=1e-6)


def test_intervals_are_on_each_parts_own_time() -> None:
    main, reference, x = field(0), field(1), state()
    guided = cfg_of(main, reference, guide(3.0, 0.2, 0.5), guide(3.0, 0.5, 0.8), TEXTURE)
    for t_tex, t_sem in [(0.1, 0.4), (0.3, 0.4), (0.1, 0.6), (0.3, 0.6), (0.6, 0.9)]:
        t = times(t_tex, t_sem)
        moved = (guided(x, t) - main(x, t)).abs().amax((0, 2, 3)) > 0
        assert bool(moved[:TEXTURE].all()) == bool(moved[:TEXTURE].any()) == (0.2 <= t_tex <= 0.5)
        assert bool(moved[TEXTURE:].all()) == bool(moved[TEXTURE:].any()) == (0.5 <= t_sem <= 0.8)
    unguided = cfg_of(main, refuses, guide(3.0, 0.2, 0.5), guide(3.0, 0.5, 0.8), TEXTURE)
    assert torch.equal(unguided(x, times(0.6, 0.9)), main(x, times(0.6, 0.9)))


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2"])
@pytest.mark.parametrize(("w_texture", "w_semantic", "asked"), [(3.0, 1.0, 20), (1.0, 3.0, 20), (3.0, 3.0, 26)])
def test_the_reference_is_asked_only_while_a_guided_part_moves_and_images_stay_equal_to_the_last_bit(
    solver: Literal["euler", "heun", "ab2"], w_texture: float, w_semantic: float, asked: int
) -> None:
    calls: list[float] = []
    schedule, settings = Schedule.offset(0.3), SolverSettings(solver, 26 * (2 if solver == "heun" else 1))
    sparing = cfg_of(field(0), counting(field(1), calls), guide(w_texture), guide(w_semantic), TEXTURE)
    always = guided_whatever_moves(field(0), field(1), w_texture, w_semantic)
    found = integrate(sparing, state(), schedule, TEXTURE, settings)
    assert torch.equal(found.x, integrate(always, state(), schedule, TEXTURE, settings).x)
    assert found.evaluations == settings.evaluations
    assert len(calls) == asked * (2 if solver == "heun" else 1)


def test_guidance_never_makes_the_host_wait_for_a_tensor() -> None:
    """On device `meta` tensors have no values: whoever decides from one fails."""
    x = state().to("meta")
    schedule = Schedule.offset(0.3)
    guided = cfg_of(lambda x, t: x.sin(), lambda x, t: x.cos(), guide(3.0, 0.2, 0.5), guide(2.0), TEXTURE)
    for solver in ("euler", "heun", "ab2"):
        assert integrate(guided, x, schedule, TEXTURE, SolverSettings(solver, 12)).x.is_meta


def test_a_model_of_texture_alone_ignores_the_semantic_weight() -> None:
    main, reference = (lambda x, t: x), (lambda x, t: -x)
    x = state()[:, :TEXTURE]
    assert torch.equal(cfg_of(main, refuses, OFF, guide(3.0), TEXTURE)(x, times(0.5, 0.5)), x)
    assert torch.equal(cfg_of(main, reference, guide(2.0), guide(9.0), TEXTURE)(x, times(0.5, 0.5)), 3 * x)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_oracle_brings_semantics_to_the_real_latent_and_leaves_texture_to_the_model(
    solver: Literal["euler", "heun"],
) -> None:
    x0 = state()
    real = torch.randn(N, SEMANTIC, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    seen = []
    settings = SolverSettings(solver, 40)
    solution = integrate(
        oracle(field(0), x0, real, TEXTURE), x0, Schedule.offset(0.3), TEXTURE, settings, lambda u, x, data: seen.append(data)
    )
    assert torch.allclose(solution.x[:, TEXTURE:], real, atol=1e-5)
    assert all(torch.allclose(data[:, TEXTURE:], real, atol=1e-5) for data in seen)
    free = integrate(field(0), x0, Schedule.offset(0.3), TEXTURE, settings)
    assert not torch.allclose(free.x[:, :TEXTURE], solution.x[:, :TEXTURE])


@pytest.mark.parametrize(("delta_t", "followed"), [(1.0, 0.8), (0.3, 0.7), (0.0, 0.39)])
def test_texture_follows_real_semantics_only_if_they_are_finished_first(delta_t: float, followed: float) -> None:
    """Both parts are normal with correlation 0.8, so exact velocities are known; by themselves they keep it in any order."""
    drawn = torch.randn(1, 3, 100, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0, real = drawn[:, :2], drawn[:, 2:]
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)

    def velocity(x: Tensor, times: SharedTimes) -> Tensor:
        t = torch.tensor([times.texture, times.semantic], dtype=torch.float64)
        of_state = t[:, None] * covariance * t + torch.diag((1 - t) ** 2)
        of_velocity_and_state = covariance * t - torch.diag(1 - t)
        return torch.einsum("cd,ndhw->nchw", of_velocity_and_state @ torch.linalg.inv(of_state), x)

    for drawn_by, correlation in ((velocity, 0.8), (oracle(velocity, x0, real, 1), followed)):
        solution = integrate(drawn_by, x0, Schedule.offset(delta_t), 1, SolverSettings("heun", 100))
        assert torch.corrcoef(solution.x[0].flatten(1))[0, 1].item() == pytest.approx(correlation, abs=0.01)


@pytest.mark.parametrize("weak", [0, 1])
@pytest.mark.parametrize("scale", [0.0, 1.5, 3.0])
def test_semantic_guidance_extrapolates_texture_from_a_velocity_without_semantics(scale: float, weak: int) -> None:
    x, x0, t = state(), state() + 1, times(0.3, 0.6)

    def velocity(seed: int) -> VelocityFn:
        return lambda x, times: field(seed)(x, times) + 2 * times.t_sem[:, None, None, None]

    found = semantic_guidance(velocity(0), velocity(weak), x0, guide(scale), TEXTURE)(x, t)
    alone = velocity(weak)(torch.cat([x[:, :TEXTURE], x0[:, TEXTURE:]], dim=1), times(0.3, 0.0))
    v = velocity(0)(x, t)
    assert torch.allclose(found[:, :TEXTURE], (alone + scale * (v - alone))[:, :TEXTURE], atol=1e-6)
    assert torch.equal(found[:, TEXTURE:], v[:, TEXTURE:])


@pytest.mark.parametrize(
    ("scale", "interval", "t", "phase"),
    [(1.0, (0.0, 1.0), 0.5, Phase.BOTH), (2.0, (0.6, 1.0), 0.5, Phase.BOTH), (2.0, (0.0, 1.0), 0.0, Phase.SEMANTIC)],
)
def test_semantic_guidance_costs_nothing_while_it_does_nothing(
    scale: float, interval: tuple[float, float], t: float, phase: Phase
) -> None:
    guided = semantic_guidance(field(0), refuses, state(), guide(scale, *interval), TEXTURE)
    assert torch.equal(guided(state(), times(t, 0.6, phase)), field(0)(state(), times(t, 0.6)))


def test_internal_guidance_is_the_same_extrapolation() -> None:
    main, inner, x, t = field(0), field(1), state(), times(0.3, 0.6)
    found = internal(main, lambda x, times: (main(x, times), inner(x, times)), guide(1.5), guide(2.0), TEXTURE)(x, t)
    torch.testing.assert_close(found, autoguidance(main, inner, guide(1.5), guide(2.0), TEXTURE)(x, t))
    assert torch.equal(internal(main, refuses, OFF, OFF, TEXTURE)(x, t), main(x, t))


def test_a_time_at_the_end_of_an_interval_is_in_it_whatever_its_last_bit() -> None:
    guided = guide(2.0, 0.3, 0.6)
    assert 0.7 - 0.4 < 0.3
    assert 0.2 + 0.4 > 0.6
    assert [_weight(guided, t, moves=True) for t in (0.29, 0.7 - 0.4, 0.2 + 0.4, 0.61)] == [1, 2, 2, 1]
