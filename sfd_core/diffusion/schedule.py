"""The order in which texture and semantics are denoised: the only place that knows the offset delta_t.

A schedule is a monotone path of the local times (t_tex, t_sem) from (0, 0), both noise, to (1, 1), both data, over global time
u. SFD's path lets semantics lead by delta_t: they are denoised while u is in [0, 1), texture while u is in
[delta_t, 1 + delta_t). Source: "Semantics Lead the Way" (arXiv 2512.04926), section on asynchronous denoising.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from itertools import pairwise
from statistics import NormalDist
from typing import Self

import torch
from torch import Tensor

from sfd_core.experiment.params import SamplerParams, VariantParams, monotone_path
from sfd_core.host.errors import ConfigError


class Phase(Enum):
    """What is denoised: only semantics (initialisation), both (asynchronous generation), or only texture (completion)."""

    SEMANTIC = "semantic"
    BOTH = "both"
    TEXTURE = "texture"

    @property
    def texture_acts(self) -> bool:
        """Whether the texture velocity acts in this phase."""
        return self is not Phase.SEMANTIC

    @property
    def semantic_acts(self) -> bool:
        """Whether the semantic velocity acts in this phase."""
        return self is not Phase.TEXTURE


@dataclass(frozen=True)
class PhaseSpan:
    """An interval [start, stop) of global time over which both local times rise evenly."""

    phase: Phase
    start: float
    stop: float
    rates: tuple[float, float]
    """Local time of texture and of semantics per global time: 1 for the faster one, 0 for one that stands still."""


@dataclass(frozen=True)
class LocalTimes:
    """The times of texture and semantics in [0, 1], of equal shape, usually (N,)."""

    t_tex: Tensor
    t_sem: Tensor


@dataclass(frozen=True)
class SharedTimes(LocalTimes):
    """Local times (N,) of images at the same global time, and the same times as plain numbers.

    Decisions use the plain numbers, because reading the tensors would make the host wait for the device.
    """

    texture: float
    semantic: float
    phase: Phase
    """Phase of the interval that is integrated; at its end, still the phase at its start."""

    def twice(self) -> "SharedTimes":
        """Return the same times for a batch of twice the size."""
        return replace(self, t_tex=torch.cat([self.t_tex] * 2), t_sem=torch.cat([self.t_sem] * 2))


@dataclass(frozen=True)
class Active:
    """Whether the velocity of texture and of semantics acts: boolean, with the shape of the times."""

    texture: Tensor
    semantic: Tensor


@dataclass(frozen=True)
class Knot:
    """A corner of the path: global time and both local times."""

    u: float
    t_tex: float
    t_sem: float


@dataclass(frozen=True)
class Schedule:
    """A path of local times; between its corners both rise evenly, and the faster one as fast as global time.

    Build it with `of`, `offset` or `table`.
    """

    knots: tuple[Knot, ...]

    @classmethod
    def offset(cls, delta_t: float) -> Self:
        """Return SFD's path: semantics lead texture by `delta_t` of global time.

        0 is ordinary synchronous flow matching; 1 a cascade, which finishes semantics first; with a negative offset texture
        leads. Raises `ConfigError` for a `delta_t` outside [-1, 1].
        """
        if not -1 <= delta_t <= 1:
            raise ConfigError(f"delta_t is {delta_t}, but one part can lead the other by 1 at most; choose a value in [-1, 1]")
        lead = abs(delta_t)
        corners = [(0.0, 0.0, 0.0), (lead, 0.0, lead), (1.0, 1 - lead, 1.0), (1 + lead, 1.0, 1.0)]
        knots = [Knot(u, behind, ahead) if delta_t >= 0 else Knot(u, ahead, behind) for u, behind, ahead in corners]
        return cls((knots[0], *(knot for before, knot in pairwise(knots) if knot.u > before.u)))

    @classmethod
    def table(cls, corners: Sequence[Sequence[float]]) -> Self:
        """Return the path through corners (t_tex, t_sem).

        Raises `ConfigError` unless they lead from (0, 0) to (1, 1) without a step back.
        """
        try:
            monotone_path(corners)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        knots = [Knot(0.0, 0.0, 0.0)]
        for t_tex, t_sem in corners[1:]:
            texture, semantic = t_tex - knots[-1].t_tex, t_sem - knots[-1].t_sem
            if max(texture, semantic) > 0:
                knots.append(Knot(knots[-1].u + max(texture, semantic), t_tex, t_sem))
        return cls(tuple(knots))

    @classmethod
    def of(cls, variant: VariantParams, sampler: SamplerParams | None = None) -> Self:
        """Return the path of a variant, or another one if `sampler` samples it along that."""
        chosen = variant if sampler is None or (sampler.path is None and sampler.delta_t is None) else sampler
        return cls.offset(chosen.delta_t or 0.0) if chosen.path is None else cls.table(chosen.path)

    @property
    def end(self) -> float:
        """Global time at which both parts are data; 1 + |delta_t| for an offset."""
        return self.knots[-1].u

    @property
    def corners(self) -> list[list[float]]:
        """Its corners [t_tex, t_sem], from which `table` makes it again."""
        return [[knot.t_tex, knot.t_sem] for knot in self.knots]

    def local_times(self, u: Tensor) -> LocalTimes:
        """Return local times at global times `u` (any shape), constant before 0 and after the end."""
        return LocalTimes(t_tex=self._texture.at(u), t_sem=self._semantic.at(u))

    def interval(self, semantic: bool) -> tuple[float, float]:
        """Return the global times between which one part is denoised."""
        rises = (self._semantic if semantic else self._texture).rises
        return rises[0].start, rises[-1].stop

    @property
    def finishes_semantics(self) -> bool:
        """Whether semantics are data before texture begins, as in a cascade."""
        return self.interval(semantic=True)[1] <= self.interval(semantic=False)[0]

    def global_times(self, t: Tensor, semantic: bool) -> Tensor:
        """Return the global times at which one part has the local times `t` in (0, 1); see `local_times`."""
        return (self._semantic if semantic else self._texture).inverse(t)

    def shared_times(self, u: float, phase: Phase, like: Tensor) -> SharedTimes:
        """Return local times at global time `u` in `phase`, for a batch with size, device and dtype of `like` (N, ...)."""
        # in float64 on the CPU, where u - delta_t is exactly 0 and 1; not every device has float64
        local = self.local_times(torch.tensor(u, dtype=torch.float64))
        texture, semantic = local.t_tex.item(), local.t_sem.item()
        t_tex, t_sem = (torch.full((len(like),), t, dtype=like.dtype, device=like.device) for t in (texture, semantic))
        return SharedTimes(t_tex, t_sem, texture, semantic, phase)

    def active(self, u: Tensor) -> Active:
        """Return whether each velocity acts at global times `u` (any shape)."""
        return Active(texture=self._texture.acts(u), semantic=self._semantic.acts(u))

    @cached_property
    def spans(self) -> tuple[PhaseSpan, ...]:
        """The intervals between corners in order; they cover [0, end) without gaps."""
        spans = []
        for start, stop in pairwise(self.knots):
            texture, semantic = stop.t_tex - start.t_tex, stop.t_sem - start.t_sem
            faster = max(texture, semantic)
            phase = Phase.BOTH if min(texture, semantic) > 0 else Phase.TEXTURE if texture > 0 else Phase.SEMANTIC
            spans.append(PhaseSpan(phase, start.u, stop.u, (texture / faster, semantic / faster)))
        return tuple(spans)

    def span(self, u: float) -> PhaseSpan:
        """Return the interval that holds global time `u`; the end belongs to the last one."""
        return next((span for span in self.spans if span.start <= u < span.stop), self.spans[-1])

    def phase_shares(self) -> dict[Phase, float]:
        """Return the exact fraction of training samples in each phase when u is drawn as t * end, t logit-normal(0, 1).

        Then P(u < x) = Phi(logit(x / end)) = Phi(ln(x / (end - x))).
        """
        shares = dict.fromkeys(Phase, 0.0)
        for span in self.spans:
            shares[span.phase] += self._share_before(span.stop) - self._share_before(span.start)
        return shares

    def grid(self, intervals: int, shift: float = 1.0) -> Tensor:
        """Return `intervals` + 1 increasing global times, float64, from 0 to the end, including every corner of the path.

        The timestep shift s maps the grid, rescaled to [0, 1], by t' = s t / (1 + (s - 1) t). The public code's plain linspace
        misses the corners, so it integrates texture and semantics over slightly wrong intervals. Raises `ConfigError` if
        there are fewer intervals than the path has or the shift is not positive.
        """
        if intervals < len(self.spans):
            raise ConfigError(
                f"{intervals} intervals cannot cover the {len(self.spans)} of the schedule, which bends at global times "
                f"{[round(knot.u, 6) for knot in self.knots]}; use {len(self.spans)} or more (heun needs two evaluations each)"
            )
        if not (shift > 0 and math.isfinite(shift)):
            raise ConfigError(f"timestep shift is {shift}, but it must be positive and finite; 1 means no shift")
        # points are evenly spaced before the shift, so the width of an interval there gives its number of points
        positions = [_unshift(knot.u / self.end, shift) for knot in self.knots]
        widths = [right - left for left, right in pairwise(positions)]
        pieces = [torch.zeros(1, dtype=torch.float64)]
        for index, count in enumerate(_distribute(intervals, widths)):
            even = torch.linspace(positions[index], positions[index + 1], count + 1, dtype=torch.float64)[1:]
            piece = _shift(even, shift) * self.end
            piece[-1] = self.knots[index + 1].u
            pieces.append(piece)
        return torch.cat(pieces)

    @cached_property
    def _texture(self) -> "_Course":
        return _Course.of([(knot.u, knot.t_tex) for knot in self.knots], [span.rates[0] for span in self.spans])

    @cached_property
    def _semantic(self) -> "_Course":
        return _Course.of([(knot.u, knot.t_sem) for knot in self.knots], [span.rates[1] for span in self.spans])

    def _share_before(self, u: float) -> float:
        return float(u > 0) if u in (0, self.end) else NormalDist().cdf(math.log(u / (self.end - u)))


@dataclass(frozen=True)
class _Rise:
    """Over global times [start, stop) a local time rises from `low` to `high` at an even rate."""

    start: float
    stop: float
    low: float
    high: float
    rate: float


@dataclass(frozen=True)
class _Course:
    """The local time of one part over global time: its rises, between which it stands still."""

    rises: tuple[_Rise, ...]

    @classmethod
    def of(cls, knots: Sequence[tuple[float, float]], rates: Sequence[float]) -> Self:
        found: list[_Rise] = []
        for (start, low), (stop, high), rate in zip(knots, knots[1:], rates, strict=False):
            before = found[-1] if found else None
            # one straight rise is kept whole over the corners of the other part, so that u - delta_t is rounded once
            if before is not None and before.stop == start and before.rate == rate:
                found[-1] = replace(before, stop=stop, high=high)
            elif rate > 0:
                found.append(_Rise(start, stop, low, high, rate))
        return cls(tuple(found))

    def at(self, u: Tensor) -> Tensor:
        return torch.stack(
            [rise.rate * (u - rise.start).clamp(0, (rise.high - rise.low) / rise.rate) for rise in self.rises]
        ).sum(0)

    def acts(self, u: Tensor) -> Tensor:
        return torch.stack([(u >= rise.start) & (u < rise.stop) for rise in self.rises]).any(0)

    def inverse(self, t: Tensor) -> Tensor:
        found = torch.full_like(t, self.rises[0].start)
        for rise in self.rises:
            found = torch.where(t > rise.low, rise.start + (t - rise.low) / rise.rate, found)
        return found


def _shift(t: Tensor, shift: float) -> Tensor:
    return shift * t / (1 + (shift - 1) * t)


def _unshift(t: float, shift: float) -> float:
    return t / (shift - (shift - 1) * t)


def _distribute(intervals: int, widths: list[float]) -> list[int]:
    """Distribute intervals over the path's: one each, then one at a time to that with the longest steps."""
    counts = [1] * len(widths)
    for _ in range(intervals - len(widths)):
        longest = max(range(len(widths)), key=lambda index: widths[index] / counts[index])
        counts[longest] += 1
    return counts
