"""Integration of a velocity function over global time, phase by phase. Shapes: x (N, C, H, W), texture channels first."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor

from sfd_core.diffusion.guidance import VelocityFn
from sfd_core.diffusion.path import channel_times, predict_data
from sfd_core.diffusion.schedule import AsyncSchedule, Phase, PhaseSpan, SharedTimes
from sfd_core.host.errors import ConfigError

DOPRI5_ABSOLUTE_TOLERANCE = 1e-6
DOPRI5_RELATIVE_TOLERANCE = 1e-3

ObserveFn = Callable[[float, Tensor, Tensor], None]
"""Called with global time u, the state x there and the data x1 that the velocity points to, at every grid point in order."""


@dataclass(frozen=True)
class SolverSettings:
    """The solver, its budget of velocity evaluations and the timestep shift of its grid (1 = none).

    Euler and Adams-Bashforth 2 (ab2) spend one evaluation an interval, Heun two (of an odd budget one is left over); dopri5
    chooses its own number and takes the budget only as the number of points at which it is observed.
    """

    name: Literal["euler", "heun", "ab2", "dopri5"]
    evaluations: int
    shift: float = 1.0

    @property
    def intervals(self) -> int:
        """Intervals of the grid."""
        return self.evaluations // 2 if self.name == "heun" else self.evaluations


@dataclass(frozen=True)
class Solution:
    """The final state (N, C, H, W) and the evaluations of the velocity function that were really made."""

    x: Tensor
    evaluations: int


@torch.no_grad()
def integrate(
    velocity: VelocityFn,
    x0: Tensor,
    schedule: AsyncSchedule,
    n_texture: int,
    solver: SolverSettings,
    observe: ObserveFn | None = None,
) -> Solution:
    """Move noise `x0` along `velocity` from u = 0 to 1 + delta_t; outside its interval a part stands still to the last bit.

    A guided velocity counts as one evaluation although it may ask two networks; the part that stands still is not guided, which
    only the data that `observe` is told of it can show. dopri5 (torchdiffeq) picks its steps from the
    error over everything it is given; it therefore takes one image at a time, so that no image depends on its batch.
    Raises `ConfigError` for a budget too small for the phases or a missing torchdiffeq, `ValueError` for dopri5 with more
    than one image.
    """
    counted = _Counted(velocity)
    path = _Path(counted, schedule, n_texture)
    grid = schedule.grid(solver.intervals, solver.shift).tolist()
    if solver.name == "dopri5":
        x = _integrate_adaptive(path, x0, grid, observe)
    else:
        steps: dict[str, StepFn] = {"euler": _euler, "heun": _heun, "ab2": _AdamsBashforth()}
        x = _integrate_grid(path, x0, grid, steps[solver.name], observe)
    evaluations = counted.calls
    if observe is not None:
        observe(grid[-1], x, x)
    return Solution(x, evaluations)


class _Counted:
    """A velocity function that counts how often it was asked."""

    def __init__(self, velocity: VelocityFn) -> None:
        self.velocity = velocity
        self.calls = 0

    def __call__(self, x: Tensor, times: SharedTimes) -> Tensor:
        self.calls += 1
        return self.velocity(x, times)


@dataclass(frozen=True)
class _Path:
    """What the solvers ask: velocities at a global time, and moves that leave the idle part alone."""

    velocity: _Counted
    schedule: AsyncSchedule
    n_texture: int

    def at(self, u: float, x: Tensor, phase: Phase) -> Tensor:
        return self.velocity(x, self.schedule.shared_times(u, phase, x))

    def moving(self, phase: Phase, channels: int) -> slice:
        return slice(0 if phase.texture_acts else self.n_texture, channels if phase.semantic_acts else self.n_texture)

    def move(self, x: Tensor, step: Tensor, phase: Phase) -> Tensor:
        part = self.moving(phase, x.shape[1])
        moved = x.clone()
        moved[:, part] += step[:, part]
        return moved

    def predict(self, u: float, x: Tensor, v: Tensor) -> Tensor:
        times = self.schedule.shared_times(u, self.schedule.phase(u), x)
        return predict_data(x, v, channel_times(times, self.n_texture, x.shape[1]))


@dataclass(frozen=True)
class _Interval:
    """An interval of the grid and its phase, the state x (N, C, H, W) at its start and the velocity v there."""

    phase: Phase
    start: float
    stop: float
    x: Tensor
    v: Tensor

    @property
    def width(self) -> float:
        return self.stop - self.start


StepFn = Callable[[_Path, _Interval], Tensor]
"""Returns the mean velocity (N, C, H, W) over an interval."""


def _integrate_grid(path: _Path, x: Tensor, grid: list[float], step: StepFn, observe: ObserveFn | None) -> Tensor:
    for u, u_next in pairwise(grid):
        phase = path.schedule.phase(u)
        interval = _Interval(phase, u, u_next, x, path.at(u, x, phase))
        if observe is not None:
            observe(u, x, path.predict(u, x, interval.v))
        x = path.move(x, interval.width * step(path, interval), interval.phase)
    return x


def _euler(_: _Path, interval: _Interval) -> Tensor:
    return interval.v


def _heun(path: _Path, interval: _Interval) -> Tensor:
    ahead = path.move(interval.x, interval.width * interval.v, interval.phase)
    return (interval.v + path.at(interval.stop, ahead, interval.phase)) / 2


class _AdamsBashforth:
    """Adams-Bashforth 2 with steps of any width: v + (h / 2 h') (v - v'), where ' is the interval before.

    A part that has just begun to move has no velocity of its own motion behind it and takes one Euler step; a part that goes
    on moving keeps its history across the boundary. Its velocity bends there, which costs it, as the Euler step does the
    other, an error of second order at one point: the order of the whole stays 2.
    Begun afresh in every phase it was further from the true solution at every budget that was tried. A Heun step at each start
    brings it nearer at 10 to 25 evaluations, by up to a fifth, but further at 6; Euler's needs no further evaluation.
    Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, section III.5.
    """

    def __init__(self) -> None:
        self.before: _Interval | None = None

    def __call__(self, path: _Path, interval: _Interval) -> Tensor:
        before, self.before = self.before, interval
        if before is None:
            return interval.v
        known = path.moving(before.phase, interval.x.shape[1])
        mean = interval.v.clone()
        mean[:, known] += interval.width / (2 * before.width) * (interval.v - before.v)[:, known]
        return mean


def _integrate_adaptive(path: _Path, x: Tensor, grid: list[float], observe: ObserveFn | None) -> Tensor:
    if x.shape[0] != 1:
        raise ValueError(f"dopri5 was given {x.shape[0]} images at once, which would share its steps; give it one at a time")
    for span in path.schedule.phases():
        points = [u for u in grid if span.start <= u <= span.stop] if observe else [span.start, span.stop]
        states = _dopri5(path, x, span, points)
        if observe is not None:
            for u, state in zip(points[:-1], states[:-1], strict=True):
                # asked past the counter: looking on is no part of the solution's cost
                v = path.velocity.velocity(state, path.schedule.shared_times(u, span.phase, state))
                observe(u, state, path.predict(u, state, v))
        x = states[-1]
    return x


def _dopri5(path: _Path, x: Tensor, span: PhaseSpan, points: list[float]) -> list[Tensor]:
    """Solve one phase for the moving channels alone: the idle ones neither move nor soften the error estimate."""
    part = path.moving(span.phase, x.shape[1])

    def whole(moving: Tensor) -> Tensor:
        full = x.clone()
        full[:, part] = moving
        return full

    def derivative(u: Tensor, moving: Tensor) -> Tensor:
        # torchdiffeq's choice of a first step may look beyond the phase, where the idle part would have to move
        inside = min(max(float(u), span.start), span.stop)
        return path.at(inside, whole(moving), span.phase)[:, part]

    states = _torchdiffeq_odeint()(
        derivative,
        x[:, part],
        torch.tensor(points, dtype=torch.float64),
        rtol=DOPRI5_RELATIVE_TOLERANCE,
        atol=DOPRI5_ABSOLUTE_TOLERANCE,
        method="dopri5",
        options={"step_t": torch.tensor([span.stop], dtype=torch.float64)},
    )
    return [whole(state) for state in states]


def _torchdiffeq_odeint() -> Callable[..., Tensor]:
    try:
        # imported when needed: machines that only train or take fixed steps do without it
        from torchdiffeq import odeint  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("solver dopri5 needs the package torchdiffeq; install it or choose euler, heun or ab2") from error
    return cast(Callable[..., Tensor], odeint)
