"""The velocity errors of a denoiser over all pairs of local times, and the order of denoising that costs least on them.

A path of local times (t_tex, t_sem) costs the sum over both parts k of the integral of w_k(t_k) e_k(t_tex, t_sem) dt_k, e_k
being the part's mean squared velocity error. With the likelihood weight t / (1 - t) and an exact denoiser this field is
conservative, so every order costs the same: with snr = t^2 / (1 - t)^2, w e dt is the mmse times d(snr) / 2, whose sum over
both parts is the gradient of the mutual information (Palomar and Verdu, arXiv cs/0504004). Order matters as far as weights, the
network's capacity and the solver's steps depart from that.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product

from torch import Tensor

from sfd_core.experiment.params import Weighting

Corner = tuple[float, float]
"""Local times (t_tex, t_sem)."""
WEIGHTS: dict[Weighting, Callable[[float], float]] = {
    "uniform": lambda _: 1.0,
    # the density of the times that training draws
    "logit_normal": lambda t: math.exp(-(math.log(t / (1 - t)) ** 2) / 2) / (math.sqrt(2 * math.pi) * t * (1 - t)),
    "likelihood": lambda t: t / (1 - t),
}
"""Weight over a part's own local time in (0, 1)."""


@dataclass(frozen=True)
class ErrorField:
    """Mean squared velocity errors, of one value, at every pair of the local times of a grid."""

    times: Tensor
    """(K,), rising from 0 to 1."""
    texture: Tensor
    """(K, K): of texture at [i, j], where t_tex is times[i] and t_sem is times[j]."""
    semantic: Tensor
    """(K, K): of semantics, likewise."""


@dataclass(frozen=True)
class PathCosts:
    """How paths on a field are priced: semantics count `semantic_weight` times as much as texture."""

    field: ErrorField
    semantic_weight: float
    weighting: Weighting

    def step(self, start: tuple[int, int], stop: tuple[int, int]) -> float:
        """Return the cost of the straight line between two points of the grid."""
        cost = 0.0
        for axis, factor, errors in ((0, 1.0, self.field.texture), (1, self.semantic_weight, self.field.semantic)):
            low, high = float(self.field.times[start[axis]]), float(self.field.times[stop[axis]])
            if high > low:
                error = float(errors[start] + errors[stop]) / 2
                cost += factor * WEIGHTS[self.weighting]((low + high) / 2) * error * (high - low)
        return cost

    def path(self, points: list[tuple[int, int]]) -> float:
        """Return the cost of the path through points of the grid."""
        return sum(self.step(start, stop) for start, stop in pairwise(points))


def least_cost_path(costs: PathCosts) -> list[Corner]:
    """Return the corners of the monotone path from (0, 0) to (1, 1) that costs least among those along the grid's cells.

    It goes along edges and diagonals, and is found by dynamic programming.
    """
    size = len(costs.field.times)
    best: dict[tuple[int, int], tuple[float, tuple[int, int] | None]] = {(0, 0): (0.0, None)}
    for point in list(product(range(size), range(size)))[1:]:
        before = [(point[0] - i, point[1] - j) for i, j in ((1, 1), (1, 0), (0, 1)) if point[0] >= i and point[1] >= j]
        best[point] = min(((best[start][0] + costs.step(start, point), start) for start in before), key=lambda found: found[0])
    points: list[tuple[int, int]] = []
    at: tuple[int, int] | None = (size - 1, size - 1)
    while at is not None:
        points.insert(0, at)
        at = best[at][1]
    corners = [
        points[0],
        *(now for last, now, then in zip(points, points[1:], points[2:], strict=False) if _bends(last, now, then)),
    ]
    times = costs.field.times.tolist()
    return [(times[i], times[j]) for i, j in [*corners, points[-1]]]


def _bends(last: tuple[int, int], now: tuple[int, int], then: tuple[int, int]) -> bool:
    return (now[0] - last[0], now[1] - last[1]) != (then[0] - now[0], then[1] - now[1])
