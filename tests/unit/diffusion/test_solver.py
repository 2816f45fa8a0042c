import math
from itertools import pairwise
from typing import Literal
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint

from sfd_core.diffusion import solver as solver_module
from sfd_core.diffusion.path import by_channel, velocity
from sfd_core.diffusion.schedule import LocalTimes, Phase, Schedule, SharedTimes
from sfd_core.diffusion.solver import SolverSettings, integrate
from sfd_core.host.errors import ConfigError

N, TEXTURE, SEMANTIC, SIDE = 3, 3, 2, 4
SolverName = Literal["euler", "heun", "ab2", "dopri5"]
SOLVERS: list[SolverName] = ["euler", "heun", "ab2", "dopri5"]
OFFSETS = [0.0, 0.1, 0.3, 0.5, 1.0]
TABLES = [[(0, 0), (0.1, 0.8), (0.6, 0.8), (1, 1)], [(0, 0), (0.5, 0), (0.5, 0.9), (1, 1)]]
SCHEDULES = [*map(Schedule.offset, OFFSETS), *map(Schedule.table, TABLES)]


def ends(n: int = N) -> tuple[Tensor, Tensor]:
    x0, x1 = torch.randn(2, n, TEXTURE + SEMANTIC, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return x0, x1


def settings(name: SolverName, evaluations: int = 12, shift: float = 1.0) -> SolverSettings:
    return SolverSettings(name, evaluations, shift)


def growth(x: Tensor, times: LocalTimes) -> Tensor:
    """dx/dt = x on each part's own time: x(1) = e x(0)."""
    return x


def curved(x: Tensor, times: LocalTimes) -> Tensor:
    """Texture driven by semantics and by its own time, semantics by theirs: no part of it is solved exactly by any step."""
    t = by_channel(times.t_tex, times.t_sem, TEXTURE, x.shape[1])
    pull = x[:, TEXTURE:].mean(1, keepdim=True)
    return (2 * math.pi * t).sin() * x + pull.sin()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_along_any_path_the_true_velocity_leads_from_noise_to_data(schedule: Schedule, name: SolverName, shift: float) -> None:
    x0, x1 = ends(1)
    solution = integrate(lambda x, t: velocity(x0, x1), x0, schedule, TEXTURE, settings(name, 13, shift))
    assert torch.allclose(solution.x, x1, atol=2e-5)


@pytest.mark.parametrize("delta_t", OFFSETS)
@pytest.mark.parametrize("name", SOLVERS)
def test_idle_parts_stand_still_to_the_last_bit(delta_t: float, name: SolverName) -> None:
    x0, _ = ends(1)
    schedule = Schedule.offset(delta_t)
    trace: list[tuple[float, Tensor]] = []
    integrate(curved, x0, schedule, TEXTURE, settings(name, 30), lambda u, x, data: trace.append((u, x.clone())))
    for (u, x), (_, following) in pairwise(trace):
        phase = schedule.span(u).phase
        assert torch.equal(x[:, :TEXTURE], following[:, :TEXTURE]) == (phase is Phase.SEMANTIC)
        assert torch.equal(x[:, TEXTURE:], following[:, TEXTURE:]) == (phase is Phase.TEXTURE)
    assert torch.equal(trace[0][1], x0)


@pytest.mark.parametrize("name", SOLVERS)
def test_in_the_first_phase_texture_is_pure_noise_and_in_the_last_semantics_are_finished(name: SolverName) -> None:
    x0, _ = ends(1)
    calls: list[tuple[Tensor, LocalTimes]] = []

    def recording(x: Tensor, times: LocalTimes) -> Tensor:
        calls.append((x.clone(), times))
        return curved(x, times)

    final = integrate(recording, x0, Schedule.offset(0.3), TEXTURE, settings(name, 20)).x
    assert sum(times.t_tex.item() == 0 for _, times in calls) > 1
    assert sum(times.t_tex.item() > 0.7001 for _, times in calls) > 1
    for x, times in calls:
        assert times.t_tex.shape == times.t_sem.shape == (1,)
        assert times.t_tex.dtype == x.dtype
        assert 0 <= times.t_tex.item() <= times.t_sem.item() <= 1
        if times.t_tex.item() == 0:
            assert torch.equal(x[:, :TEXTURE], x0[:, :TEXTURE])
        if times.t_tex.item() > 0.7001:
            assert times.t_sem.item() == 1
            assert torch.equal(x[:, TEXTURE:], final[:, TEXTURE:])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("ab2", 2)])
def test_along_any_path_errors_fall_with_the_order_of_the_solver(schedule: Schedule, name: SolverName, order: int) -> None:
    x0 = ends()[0].double()
    errors = []
    for intervals in (24, 48, 96):
        solution = integrate(growth, x0, schedule, TEXTURE, settings(name, intervals * (2 if name == "heun" else 1)))
        errors.append((solution.x - math.e * x0).abs().max().item())
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_dopri5_keeps_its_tolerance_across_phase_boundaries(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    x0 = ends(1)[0]
    assert torch.allclose(integrate(growth, x0, schedule, TEXTURE, settings("dopri5")).x, math.e * x0, rtol=1e-4)
    fine = integrate(curved, x0.double(), schedule, TEXTURE, settings("heun", 800)).x.float()
    # local errors of 1e-3 add up to some 1e-2 here; asked for less, a solver that leaves no gap at a boundary gives less
    for tolerance, error in [(1e-3, 3e-2), (1e-5, 1e-4)]:
        monkeypatch.setattr(solver_module, "DOPRI5_RELATIVE_TOLERANCE", tolerance)
        assert (integrate(curved, x0, schedule, TEXTURE, settings("dopri5")).x - fine).abs().max() < error


def test_adams_bashforth_extrapolates_over_steps_of_any_width_and_starts_each_part_with_euler() -> None:
    """Against the scalar recurrence, each part with its own history: dx/dt = x + t, on the part's own time."""
    schedule = Schedule.offset(0.3)
    grid = schedule.grid(17, 3.0).tolist()
    expected = []
    for begin, stop in ((0.3, 1.3), (0.0, 1.0)):
        x, before = 1.0, None
        for u, u_next in pairwise(grid):
            if not begin <= u < stop:
                continue
            h, v = u_next - u, x + (u - begin)
            slope = v if before is None else v + (v - before[1]) * h / (2 * before[0])
            x, before = x + h * slope, (h, v)
        expected.append(x)

    def driven(x: Tensor, times: LocalTimes) -> Tensor:
        return x + by_channel(times.t_tex, times.t_sem, TEXTURE, x.shape[1])

    x0 = torch.ones(1, TEXTURE + SEMANTIC, SIDE, SIDE, dtype=torch.float64)
    found = integrate(driven, x0, schedule, TEXTURE, settings("ab2", 17, 3.0)).x
    assert found[:, :TEXTURE].flatten().tolist() == pytest.approx([expected[0]] * (TEXTURE * SIDE**2), rel=1e-12)
    assert found[:, TEXTURE:].flatten().tolist() == pytest.approx([expected[1]] * (SEMANTIC * SIDE**2), rel=1e-12)


def test_adams_bashforth_extrapolates_in_local_time_where_a_part_changes_its_rate() -> None:
    """A velocity that rises evenly with local time is met exactly, but for the Euler step that begins."""
    x0, _ = ends(1)
    schedule = Schedule.table([[0.0, 0.0], [0.2, 0.6], [1.0, 1.0]])
    times: list[LocalTimes] = []

    def rising(x: Tensor, now: LocalTimes) -> Tensor:
        times.append(now)
        return 2 * by_channel(now.t_tex, now.t_sem, TEXTURE, x.shape[1]) * torch.ones_like(x)

    moved = integrate(rising, x0, schedule, TEXTURE, settings("ab2", 7)).x - x0
    for part, first in ((slice(TEXTURE), times[1].t_tex), (slice(TEXTURE, None), times[1].t_sem)):
        assert torch.allclose(moved[:, part], 1 - torch.as_tensor(first).float() ** 2, atol=1e-6)


def test_dopri5_looks_no_further_than_its_phase() -> None:
    """Of a velocity so small that its first step would be larger than the phase."""
    seen: list[SharedTimes] = []

    def slow(x: Tensor, now: SharedTimes) -> Tensor:
        seen.append(now)
        return 1e-3 * x

    integrate(slow, ends(1)[0], Schedule.offset(1.0), TEXTURE, settings("dopri5"))
    assert {times.texture for times in seen if times.phase is Phase.SEMANTIC} == {0.0}


@pytest.mark.parametrize("delta_t", [0.3, 0.5])
def test_parts_that_drive_one_another_keep_second_order_across_boundaries(delta_t: float) -> None:
    x0, schedule = ends()[0].double(), Schedule.offset(delta_t)
    true = integrate(curved, x0, schedule, TEXTURE, settings("heun", 2 * round(1000 * schedule.end))).x
    # boundaries lie on an even grid, so that nothing but the width of the steps changes
    steps = [round(schedule.end * per_unit) for per_unit in (20, 40, 80)]
    heun = [settings("heun", 2 * n) for n in steps]
    for solvers in (heun, [settings("ab2", n) for n in steps]):
        errors = [(integrate(curved, x0, schedule, TEXTURE, solver).x - true).abs().max().item() for solver in solvers]
        for coarse, fine in pairwise(errors):
            assert math.log2(coarse / fine) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("name", ["euler", "heun", "ab2"])
def test_without_an_offset_it_is_plain_flow_matching(name: SolverName) -> None:
    x0 = ends(1)[0]
    solution = integrate(curved, x0, Schedule.offset(0.0), TEXTURE, settings(name, 10))
    x, steps, before = x0, 5 if name == "heun" else 10, None
    for step in range(steps):
        t, t_next = (LocalTimes(*[torch.full((1,), (step + k) / steps)] * 2) for k in (0, 1))
        v = curved(x, t)
        if name == "heun":
            v = (v + curved(x + v / steps, t_next)) / 2
        slope = v
        if name == "ab2" and before is not None:
            slope = 1.5 * v - 0.5 * before
        x, before = x + slope / steps, v
    assert torch.allclose(solution.x, x, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "budget", "made"),
    [("euler", 3, 3), ("euler", 40, 40), ("heun", 6, 6), ("heun", 40, 40), ("heun", 41, 40), ("ab2", 3, 3), ("ab2", 41, 41)],
)
@pytest.mark.parametrize("delta_t", [0.0, 0.3])
def test_evaluations_are_those_really_made(name: SolverName, budget: int, made: int, delta_t: float) -> None:
    counting = Mock(side_effect=growth)
    schedule, chosen = Schedule.offset(delta_t), settings(name, budget)
    solution = integrate(counting, ends()[0], schedule, TEXTURE, chosen, lambda u, x, data: None)
    assert solution.evaluations == made == counting.call_count


def test_dopri5_counts_its_own_evaluations_but_not_the_observers() -> None:
    counting, x0 = Mock(side_effect=curved), ends(1)[0]
    blind = integrate(counting, x0, Schedule.offset(0.3), TEXTURE, settings("dopri5"))
    assert blind.evaluations == counting.call_count > 20
    watched = integrate(counting, x0, Schedule.offset(0.3), TEXTURE, settings("dopri5"), lambda u, x, data: None)
    assert watched.evaluations == blind.evaluations
    assert torch.equal(watched.x, blind.x)


@pytest.mark.parametrize("name", SOLVERS)
def test_observers_see_every_grid_point_and_the_predicted_data(name: SolverName) -> None:
    x0, x1 = ends(1)
    schedule, chosen = Schedule.offset(0.3), settings(name, 14)
    seen: list[tuple[float, Tensor]] = []
    solution = integrate(
        lambda x, t: velocity(x0, x1), x0, schedule, TEXTURE, chosen, lambda u, x, data: seen.append((u, data.clone()))
    )
    assert [u for u, _ in seen] == schedule.grid(chosen.intervals).tolist()
    assert all(torch.allclose(data, x1, atol=2e-5) for _, data in seen)
    assert torch.equal(seen[-1][1], solution.x)


@pytest.mark.parametrize("name", ["euler", "heun", "ab2"])
def test_a_row_does_not_depend_on_its_batch(name: SolverName) -> None:
    def rowwise(x: Tensor, times: LocalTimes) -> Tensor:
        return (x + times.t_sem[:, None, None, None]).sin()

    x0 = ends(8)[0]
    together = integrate(rowwise, x0, Schedule.offset(0.3), TEXTURE, settings(name)).x
    for row in range(8):
        alone = integrate(rowwise, x0[row : row + 1], Schedule.offset(0.3), TEXTURE, settings(name)).x
        assert torch.equal(alone[0], together[row])


def test_dopri5_refuses_a_batch_that_would_share_its_steps() -> None:
    with pytest.raises(ValueError, match="one at a time"):
        integrate(growth, ends(2)[0], Schedule.offset(0.3), TEXTURE, settings("dopri5"))


@pytest.mark.parametrize(("name", "evaluations"), [("euler", 2), ("heun", 5), ("ab2", 2), ("dopri5", 1)])
def test_a_budget_too_small_for_the_phases_is_refused(name: SolverName, evaluations: int) -> None:
    with pytest.raises(ConfigError, match="cannot cover"):
        integrate(growth, ends(1)[0], Schedule.offset(0.3), TEXTURE, settings(name, evaluations))


@pytest.mark.parametrize("name", SOLVERS)
def test_texture_alone_is_integrated_like_any_flow_and_noise_is_left_as_it_was(name: SolverName) -> None:
    x0, x1 = (end[:, :TEXTURE] for end in ends(1))
    before = x0.clone()
    assert torch.allclose(integrate(lambda x, t: x1 - x0, x0, Schedule.offset(0.0), TEXTURE, settings(name)).x, x1, atol=2e-5)
    assert torch.equal(x0, before)


def test_boundaries_on_the_grid_beat_a_plain_linspace() -> None:
    """The public code's 50 even steps over [0, 1.3] move texture by 0.982 and semantics by 1.008 of their way."""
    points = torch.linspace(0, 1.3, 51, dtype=torch.float64)
    active = Schedule.offset(0.3).active(points[:-1])
    travelled = [(points.diff() * part).sum().item() for part in (active.texture, active.semantic)]
    assert all(abs(distance - 1) > 5e-3 for distance in travelled)
    x0, x1 = ends()
    ours = integrate(lambda x, t: x1 - x0, x0, Schedule.offset(0.3), TEXTURE, settings("euler", 50)).x
    assert torch.allclose(ours, x1, atol=1e-5)


def test_dopri5_keeps_the_tolerances_of_the_published_numbers() -> None:
    """One step more or less changes the last digits: rtol 1e-3 and atol 1e-6 are part of every number's protocol."""
    x0 = ends(1)[0] / 1000
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def field(t: Tensor, x: Tensor) -> Tensor:
        return curved(x, LocalTimes(*[t.to(x.dtype).reshape(1)] * 2))

    expected = odeint(
        field, x0, times, rtol=1e-3, atol=1e-6, method="dopri5", options={"step_t": torch.ones(1, dtype=torch.float64)}
    )[-1]
    found = integrate(curved, x0, Schedule.offset(0.0), TEXTURE, settings("dopri5")).x
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)
    other = odeint(field, x0, times, rtol=1e-3, atol=2e-6, method="dopri5")[-1]
    assert not torch.allclose(found, other, rtol=1e-6, atol=1e-9)


def test_solver_settings_leave_the_grid_alone_by_default() -> None:
    assert SolverSettings("euler", 12).shift == 1.0
    assert [SolverSettings(name, 13).intervals for name in SOLVERS] == [13, 6, 13, 13]
