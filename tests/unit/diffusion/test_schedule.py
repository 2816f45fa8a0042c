import math
from itertools import pairwise
from statistics import NormalDist

import pytest
import torch

from sfd_core.diffusion.schedule import Phase, Schedule
from sfd_core.host.errors import ConfigError

OFFSETS = [0.0, 0.1, 0.3, 0.5, 0.7, 1.0]


@pytest.mark.parametrize(
    ("delta_t", "alone", "both"), [(0.3, 11.4, 77.1), (0.1, 1.1, 97.9), (0.5, 24.4, 51.2), (1.0, 50.0, 0.0), (0.0, 0.0, 100.0)]
)
def test_phase_shares_are_those_of_the_method_exactly_and_when_drawn(delta_t: float, alone: float, both: float) -> None:
    schedule = Schedule.offset(delta_t)
    exact = schedule.phase_shares()
    # the method rounds to a tenth of a percent, its 77.1 being 77.14 and its two 11.4s 11.43
    assert 100 * exact[Phase.SEMANTIC] == pytest.approx(alone, abs=0.051)
    assert 100 * exact[Phase.BOTH] == pytest.approx(both, abs=0.051)
    # P(sigmoid(z) (1 + delta_t) < delta_t) for a standard normal z is P(z < ln delta_t)
    share = NormalDist().cdf(math.log(delta_t)) if delta_t else 0.0
    assert [exact[phase] for phase in (Phase.SEMANTIC, Phase.BOTH, Phase.TEXTURE)] == pytest.approx(
        [share, 1 - 2 * share, share], rel=1e-12, abs=1e-12
    )

    drawn_u = torch.sigmoid(torch.randn(200_000, generator=torch.Generator().manual_seed(0))) * schedule.end
    active = schedule.active(drawn_u)
    drawn = {
        Phase.SEMANTIC: active.semantic & ~active.texture,
        Phase.BOTH: active.semantic & active.texture,
        Phase.TEXTURE: active.texture & ~active.semantic,
    }
    for phase, rows in drawn.items():
        assert rows.double().mean().item() == pytest.approx(exact[phase], abs=0.004)


@pytest.mark.parametrize("delta_t", [*OFFSETS, 0.37])
def test_local_times_are_rounded_once_from_global_time_and_what_does_not_move_is_noise_or_data(delta_t: float) -> None:
    schedule = Schedule.offset(delta_t)
    u = torch.linspace(0, schedule.end, 500, dtype=torch.float64)
    times, moving = schedule.local_times(u), schedule.active(u)
    assert torch.equal(times.t_tex, (u - delta_t).clamp(0, 1))
    assert torch.equal(times.t_sem, u.clamp(max=1))
    assert times.t_tex[-1].item() == pytest.approx(1, abs=1e-15)
    assert bool((times.t_tex[~moving.texture & moving.semantic] == 0).all())
    assert bool((times.t_sem[~moving.semantic] == 1).all())


@pytest.mark.parametrize("delta_t", [*OFFSETS, 0.37, 1e-6])
@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("intervals", [3, 4, 7, 25, 50, 101])
def test_grid_rises_and_holds_every_boundary_exactly(delta_t: float, shift: float, intervals: int) -> None:
    schedule = Schedule.offset(delta_t)
    grid = schedule.grid(intervals, shift)
    assert len(grid) == intervals + 1
    assert bool((grid.diff() > 0).all())
    points = grid.tolist()
    assert points[0] == 0
    assert points[-1] == schedule.end
    assert {delta_t, 1.0} <= set(points)
    # each phase is therefore integrated over exactly its own length
    for span in schedule.spans:
        inside = [b - a for a, b in pairwise(points) if schedule.span(a).phase is span.phase]
        assert inside
        assert sum(inside) == pytest.approx(span.stop - span.start, abs=1e-12)


def test_grid_is_even_without_a_shift_and_follows_the_formula_with_one() -> None:
    assert torch.allclose(Schedule.offset(0.0).grid(10), torch.linspace(0, 1, 11, dtype=torch.float64))
    even = Schedule.offset(0.3).grid(52).diff()
    assert even.max() / even.min() < 1.1
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.allclose(Schedule.offset(0.0).grid(10, shift=3.0), 3 * t / (1 + 2 * t))
    # a cascade's boundary lies where the shift puts it: s = 3 maps 1/4 of the points to the first half
    shifted = Schedule.offset(1.0).grid(40, shift=3.0)
    assert shifted.tolist().index(1.0) == 10
    assert torch.allclose(shifted, 2 * 3 * (t := torch.linspace(0, 1, 41, dtype=torch.float64)) / (1 + 2 * t))


@pytest.mark.parametrize(
    ("delta_t", "expected"),
    [(0.0, [Phase.BOTH]), (0.3, [Phase.SEMANTIC, Phase.BOTH, Phase.TEXTURE]), (1.0, [Phase.SEMANTIC, Phase.TEXTURE])],
)
def test_empty_phases_do_not_exist(delta_t: float, expected: list[Phase]) -> None:
    schedule = Schedule.offset(delta_t)
    spans = schedule.spans
    assert [span.phase for span in spans] == expected
    assert spans[0].start == 0
    assert spans[-1].stop == schedule.end
    assert schedule.span(schedule.end).phase is expected[-1]


@pytest.mark.parametrize(("delta_t", "intervals"), [(0.3, 2), (1.0, 1), (0.0, 0)])
def test_too_few_intervals_are_refused(delta_t: float, intervals: int) -> None:
    with pytest.raises(ConfigError, match="cannot cover"):
        Schedule.offset(delta_t).grid(intervals)


@pytest.mark.parametrize("delta_t", [-1.01, 1.01, float("nan")])
def test_an_offset_outside_its_range_is_refused(delta_t: float) -> None:
    with pytest.raises(ConfigError, match="delta_t"):
        Schedule.offset(delta_t)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bad_shift_is_refused(shift: float) -> None:
    with pytest.raises(ConfigError, match="shift"):
        Schedule.offset(0.3).grid(10, shift)


def test_each_velocity_acts_from_its_start_to_before_its_end() -> None:
    u = torch.tensor([-0.1, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5], dtype=torch.float64)
    moving = Schedule.offset(0.5).active(u)
    assert moving.semantic.tolist() == [False, True, True, True, True, False, False, False]
    assert moving.texture.tolist() == [False, False, False, True, True, True, True, False]


def test_a_boundary_belongs_to_the_phase_that_begins_there() -> None:
    schedule = Schedule.offset(0.3)
    found = [schedule.span(u).phase for u in (0.0, 0.2999, 0.3, 0.9999, 1.0, 1.2999, 1.3)]
    assert found == [Phase.SEMANTIC] * 2 + [Phase.BOTH] * 2 + [Phase.TEXTURE] * 3


@pytest.mark.parametrize(("intervals", "counts"), [(3, (1, 1, 1)), (4, (1, 2, 1)), (13, (3, 7, 3)), (26, (6, 14, 6))])
def test_intervals_go_to_the_phase_whose_steps_are_longest(intervals: int, counts: tuple[int, ...]) -> None:
    points = Schedule.offset(0.3).grid(intervals).tolist()
    dealt = [sum(start <= u < stop for u in points) for start, stop in ((0.0, 0.3), (0.3, 1.0), (1.0, 1.3))]
    assert tuple(dealt) == counts


def test_times_of_images_at_one_global_time_are_theirs_and_plain_numbers() -> None:
    like = torch.zeros(3, 5, 4, 4, dtype=torch.float64)
    times = Schedule.offset(0.3).shared_times(0.5, Phase.BOTH, like)
    assert (times.texture, times.semantic, times.phase) == (pytest.approx(0.2), 0.5, Phase.BOTH)
    assert times.t_tex.tolist() == [times.texture] * 3
    assert times.t_sem.tolist() == [times.semantic] * 3
    assert times.t_tex.dtype == times.t_sem.dtype == torch.float64
    twice = times.twice()
    assert (twice.t_tex.tolist(), twice.t_sem.tolist()) == ([times.texture] * 6, [times.semantic] * 6)
    assert (twice.texture, twice.semantic, twice.phase) == (times.texture, times.semantic, times.phase)


def test_which_part_acts_in_a_phase() -> None:
    assert [phase.texture_acts for phase in (Phase.SEMANTIC, Phase.BOTH, Phase.TEXTURE)] == [False, True, True]
    assert [phase.semantic_acts for phase in (Phase.SEMANTIC, Phase.BOTH, Phase.TEXTURE)] == [True, True, False]


def test_outside_of_its_interval_a_part_stays_noise_or_data() -> None:
    times = Schedule.offset(0.3).local_times(torch.tensor([-0.5, 1.25, 3.0]))
    assert times.t_sem.tolist() == [0.0, 1.0, 1.0]
    assert times.t_tex.tolist() == pytest.approx([0.0, 0.95, 1.0])


def test_shared_times_are_exact_at_the_boundaries_and_on_the_device_of_the_images() -> None:
    like = torch.zeros(2, 5, 4, 4)
    schedule = Schedule.offset(0.3)
    assert [schedule.shared_times(u, Phase.BOTH, like).texture for u in (0.3, 1.3)] == [0.0, 1.0]
    times = schedule.shared_times(0.5, Phase.BOTH, like.to("meta"))
    assert {times.t_tex.device.type, times.t_sem.device.type} == {"meta"}


@pytest.mark.parametrize("delta_t", [*OFFSETS, 0.37])
def test_with_a_negative_offset_texture_leads_in_the_same_way(delta_t: float) -> None:
    ahead, behind = Schedule.offset(delta_t), Schedule.offset(-delta_t)
    u = torch.linspace(-0.1, 2.1, 300, dtype=torch.float64)
    assert torch.equal(ahead.local_times(u).t_sem, behind.local_times(u).t_tex)
    assert torch.equal(ahead.local_times(u).t_tex, behind.local_times(u).t_sem)
    assert torch.equal(ahead.active(u).texture, behind.active(u).semantic)
    assert torch.equal(ahead.grid(12), behind.grid(12))


@pytest.mark.parametrize("delta_t", [*OFFSETS, 0.37, -0.3])
def test_an_offset_is_the_table_of_its_corners(delta_t: float) -> None:
    offset = Schedule.offset(delta_t)
    table = Schedule.table([(knot.t_tex, knot.t_sem) for knot in offset.knots])
    assert table.end == pytest.approx(offset.end)
    u = torch.linspace(0, offset.end, 50, dtype=torch.float64)
    assert torch.allclose(table.local_times(u).t_tex, offset.local_times(u).t_tex)
    assert torch.allclose(table.local_times(u).t_sem, offset.local_times(u).t_sem)
    assert [span.rates for span in table.spans] == [span.rates for span in offset.spans]


def test_along_a_table_the_faster_part_rises_as_fast_as_global_time() -> None:
    schedule = Schedule.table([(0, 0), (0.1, 0.8), (0.1, 0.8), (0.6, 0.8), (1, 1)])
    assert [(round(span.start, 6), round(span.stop, 6), span.phase) for span in schedule.spans] == [
        (0, 0.8, Phase.BOTH),
        (0.8, 1.3, Phase.TEXTURE),
        (1.3, 1.7, Phase.BOTH),
    ]
    assert [rate for span in schedule.spans for rate in span.rates] == pytest.approx([0.125, 1, 1, 0, 1, 0.5])
    times = schedule.local_times(torch.tensor([0.4, 0.8, 1.05, 1.5, 1.7], dtype=torch.float64))
    assert times.t_tex.tolist() == pytest.approx([0.05, 0.1, 0.35, 0.8, 1])
    assert times.t_sem.tolist() == pytest.approx([0.4, 0.8, 0.8, 0.9, 1])
    assert schedule.active(torch.tensor([1.0])).semantic.tolist() == [False]
    assert {0.8, 1.3} <= {round(point, 6) for point in schedule.grid(10).tolist()}


@pytest.mark.parametrize("schedule", [Schedule.offset(0.3), Schedule.offset(-1), Schedule.table([(0, 0), (0.1, 0.8), (1, 1)])])
def test_global_times_undo_local_times(schedule: Schedule) -> None:
    t = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    assert torch.allclose(schedule.local_times(schedule.global_times(t, semantic=True)).t_sem, t)
    assert torch.allclose(schedule.local_times(schedule.global_times(t, semantic=False)).t_tex, t)


@pytest.mark.parametrize(
    ("corners", "reason"),
    [
        ([(0, 0), (0.5, 1)], "end with"),
        ([(0.1, 0), (1, 1)], "begin with"),
        ([], "begin with"),
        ([(0, 0), (0.5, 0.5), (0.4, 0.9), (1, 1)], "steps back to"),
    ],
)
def test_a_table_that_is_no_path_is_refused(corners: list[tuple[float, float]], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Schedule.table(corners)


def test_a_part_is_denoised_between_its_first_and_last_rise() -> None:
    assert Schedule.offset(0.3).interval(semantic=True) == (0, 1)
    assert Schedule.offset(0.3).interval(semantic=False) == (0.3, 1.3)


def test_a_part_stands_still_between_two_rises_at_one_rate() -> None:
    schedule = Schedule.table([(0, 0), (0.5, 0), (0.5, 0.9), (1, 1)])
    u = torch.tensor([0.25, 0.5, 1.0, 1.4, 1.9], dtype=torch.float64)
    times, moving = schedule.local_times(u), schedule.active(u)
    assert times.t_tex.tolist() == pytest.approx([0.25, 0.5, 0.5, 0.5, 1])
    assert times.t_sem.tolist() == pytest.approx([0, 0, 0.5, 0.9, 1])
    assert moving.texture.tolist() == [True, False, False, True, False]
    assert moving.semantic.tolist() == [False, True, True, True, False]
