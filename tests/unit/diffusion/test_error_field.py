"""Costs of paths: equal for every order where the field is conservative, the dearer region avoided where it is not."""

import math

import pytest
import torch

from sfd_core.diffusion.error_field import WEIGHTS, ErrorField, PathCosts, least_cost_path
from sfd_core.diffusion.schedule import Schedule

CORRELATION = 0.8


def gaussian_field(points: int, last: float) -> ErrorField:
    """The exact errors of two correlated unit Gaussians, up to time `last`: e = mmse / (1 - t)^2."""
    times = torch.linspace(0, last, points, dtype=torch.float64)
    precision = (times / (1 - times)).square()  # that one noisy part tells of its own data
    prior = torch.linalg.inv(torch.tensor([[1, CORRELATION], [CORRELATION, 1]], dtype=torch.float64))
    posterior = prior.repeat(points, points, 1, 1)
    posterior[..., 0, 0] += precision[:, None]
    posterior[..., 1, 1] += precision[None, :]
    variances = torch.linalg.inv(posterior).diagonal(dim1=-2, dim2=-1)
    rest = 1 - times
    return ErrorField(times, variances[..., 0] / rest[:, None] ** 2, variances[..., 1] / rest[None, :] ** 2)


def three_orders(points: int) -> list[list[tuple[int, int]]]:
    rise = list(range(points))
    texture_first = [(i, 0) for i in rise] + [(points - 1, j) for j in rise[1:]]
    return [texture_first, [(j, i) for i, j in texture_first], [(i, i) for i in rise]]


def test_with_likelihood_weights_every_order_of_an_exact_denoiser_costs_the_same() -> None:
    costs = PathCosts(gaussian_field(400, 0.9), 1.0, "likelihood")
    found = [costs.path(order) for order in three_orders(400)]
    # the mutual information of noisy and clean data, which only the end of the path decides
    snr = (0.9 / 0.1) ** 2
    covariance = torch.tensor([[1, CORRELATION], [CORRELATION, 1]], dtype=torch.float64)
    information = 0.5 * torch.logdet(torch.eye(2, dtype=torch.float64) + snr * covariance).item()
    assert found == pytest.approx([information] * 3, rel=1e-3)


def test_with_other_weights_order_matters() -> None:
    costs = PathCosts(gaussian_field(100, 0.9), 1.0, "uniform")
    texture_first, semantics_first, together = (costs.path(order) for order in three_orders(100))
    assert texture_first == pytest.approx(semantics_first)  # both parts are alike here
    assert abs(together / texture_first - 1) > 0.02


def test_the_least_cost_path_goes_round_what_is_dear_and_fits_a_schedule() -> None:
    times = torch.linspace(0, 1, 9, dtype=torch.float64)
    cheap, dear = torch.ones(9, 9), torch.ones(9, 9)
    dear[:, :5] = 10  # texture is hard while semantics are noise
    field = ErrorField(times, dear, cheap)
    path = least_cost_path(PathCosts(field, 1.0, "uniform"))
    assert path[0] == (0, 0)
    assert path[1] == (0, 0.625)
    assert path[-1] == (1, 1)
    for (a, b), (c, d), (e, f) in zip(path, path[1:], path[2:], strict=False):
        assert (c - a) * (f - d) != (d - b) * (e - c)  # it turns at each point
    assert Schedule.table(path).end == pytest.approx(1.625, abs=0.4)
    points = [(round(8 * t_tex), round(8 * t_sem)) for t_tex, t_sem in path]
    assert PathCosts(field, 1.0, "uniform").path(points) <= 2 + 1e-9


def test_no_path_along_the_cells_costs_less() -> None:
    torch.manual_seed(0)
    field = ErrorField(torch.linspace(0, 1, 4, dtype=torch.float64), torch.rand(4, 4), torch.rand(4, 4))
    costs = PathCosts(field, 0.7, "logit_normal")

    def every(point: tuple[int, int]) -> list[list[tuple[int, int]]]:
        if point == (3, 3):
            return [[point]]
        steps = [(point[0] + i, point[1] + j) for i, j in ((1, 0), (0, 1), (1, 1)) if point[0] + i < 4 and point[1] + j < 4]
        return [[point, *rest] for step in steps for rest in every(step)]

    path = [(round(3 * t_tex), round(3 * t_sem)) for t_tex, t_sem in least_cost_path(costs)]
    whole = [path[0]]
    for stop in path[1:]:  # corners alone are returned
        while whole[-1] != stop:
            whole.append(tuple(at + (end > at) for at, end in zip(whole[-1], stop, strict=True)))
    assert costs.path(whole) == pytest.approx(min(costs.path(points) for points in every((0, 0))))


def test_the_logit_normal_weight_is_the_density_of_training_times() -> None:
    times = torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1]
    assert sum(WEIGHTS["logit_normal"](t) for t in times.tolist()) / 20_000 == pytest.approx(1, abs=1e-6)
    assert WEIGHTS["logit_normal"](0.5) == pytest.approx(4 / math.sqrt(2 * math.pi))


def test_semantics_count_by_their_weight_and_texture_as_it_is() -> None:
    field = ErrorField(torch.tensor([0.0, 0.5, 1.0]), torch.full((3, 3), 3.0), torch.full((3, 3), 5.0))
    costs = PathCosts(field, 2.0, "uniform")
    assert costs.path([(0, 0), (2, 0)]) == pytest.approx(3)
    assert costs.path([(0, 0), (0, 2)]) == pytest.approx(2 * 5)
    assert costs.path([(0, 0), (1, 2), (2, 2)]) == pytest.approx(3 + 2 * 5)


def test_a_step_costs_the_mean_error_of_its_ends_by_the_weight_halfway() -> None:
    errors = torch.tensor([[1.0, 2.0], [5.0, 7.0]])
    costs = PathCosts(ErrorField(torch.tensor([0.0, 0.5]), errors, 10 * errors), 3.0, "likelihood")
    weight = 0.25 / 0.75
    assert costs.step((0, 0), (1, 0)) == pytest.approx(weight * (1 + 5) / 2 * 0.5)
    assert costs.step((0, 0), (0, 1)) == pytest.approx(3 * weight * 10 * (1 + 2) / 2 * 0.5)
