"""The asynchronous schedule: the only place that uses the offset delta_t.

Global time u runs from 0 to 1 + delta_t. Semantics are denoised while u is in [0, 1), texture while u is in
[delta_t, 1 + delta_t). Meanwhile their own time t runs from 0 (noise) to 1 (data); outside it is clamped.
Source: "Semantics Lead the Way" (arXiv 2512.04926), section on asynchronous denoising.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise

import torch
from torch import Tensor

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
    """A phase and its interval [start, stop) of global time."""

    phase: Phase
    start: float
    stop: float


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
class Times(LocalTimes):
    """Local times with their global time u (N,)."""

    u: Tensor

    def to(self, device: torch.device) -> "Times":
        """Return the same times on `device`."""
        return Times(t_tex=self.t_tex.to(device), t_sem=self.t_sem.to(device), u=self.u.to(device))


@dataclass(frozen=True)
class Active:
    """Whether the velocity of texture and of semantics acts: boolean, with the shape of the global time."""

    texture: Tensor
    semantic: Tensor


@dataclass(frozen=True)
class AsyncSchedule:
    """Semantics lead texture by `delta_t` in [0, 1] of global time; 0 is ordinary synchronous flow matching.

    Raises `ConfigError` for another `delta_t`.
    """

    delta_t: float

    def __post_init__(self) -> None:
        if not 0 <= self.delta_t <= 1:
            raise ConfigError(f"delta_t is {self.delta_t}, but semantics can lead by 0 to 1; choose a value in [0, 1]")

    @property
    def end(self) -> float:
        """Global time at which both parts are data."""
        return 1 + self.delta_t

    def local_times(self, u: Tensor) -> LocalTimes:
        """Return local times at global times `u` (any shape): t_tex = max(u - delta_t, 0), t_sem = min(u, 1)."""
        return LocalTimes(t_tex=(u - self.delta_t).clamp(0, 1), t_sem=u.clamp(0, 1))

    def shared_times(self, u: float, phase: Phase, like: Tensor) -> SharedTimes:
        """Return local times at global time `u` in `phase`, for a batch with size, device and dtype of `like` (N, ...)."""
        # in float64 on the CPU, where u - delta_t is exactly 0 and 1; not every device has float64
        local = self.local_times(torch.tensor(u, dtype=torch.float64))
        texture, semantic = local.t_tex.item(), local.t_sem.item()
        t_tex, t_sem = (torch.full((len(like),), t, dtype=like.dtype, device=like.device) for t in (texture, semantic))
        return SharedTimes(t_tex, t_sem, texture, semantic, phase)

    def active(self, u: Tensor) -> Active:
        """Return whether each velocity acts at global times `u` (any shape)."""
        return Active(texture=(u >= self.delta_t) & (u < self.end), semantic=(u >= 0) & (u < 1))

    def sample(self, n: int, generator: torch.Generator) -> Times:
        """Draw training times (n,), float32: u = t (1 + delta_t) with t logit-normal(0, 1).

        The paper's equation draws t uniformly, its appendix and code logit-normally. This follows the appendix and code.
        """
        t = torch.sigmoid(torch.randn(n, generator=generator))
        u = t * self.end
        local = self.local_times(u)
        return Times(t_tex=local.t_tex, t_sem=local.t_sem, u=u)

    def phases(self) -> tuple[PhaseSpan, ...]:
        """Return the non-empty phases in order; they cover [0, 1 + delta_t) without gaps."""
        spans = (
            PhaseSpan(Phase.SEMANTIC, 0.0, float(self.delta_t)),
            PhaseSpan(Phase.BOTH, float(self.delta_t), 1.0),
            PhaseSpan(Phase.TEXTURE, 1.0, float(self.end)),
        )
        return tuple(span for span in spans if span.start < span.stop)

    def phase(self, u: float) -> Phase:
        """Return the phase at global time `u`; the end 1 + delta_t belongs to the last phase."""
        spans = self.phases()
        return next((span.phase for span in spans if span.start <= u < span.stop), spans[-1].phase)

    def phase_shares(self) -> dict[Phase, float]:
        """Return the exact fraction of training samples in each phase.

        With t logit-normal, P(u < delta_t) = Phi(logit(delta_t / (1 + delta_t))) = Phi(ln delta_t), and P(u >= 1) is the same.
        """
        lead = 0.0 if self.delta_t == 0 else 0.5 * math.erfc(-math.log(self.delta_t) / math.sqrt(2))
        return {Phase.SEMANTIC: lead, Phase.BOTH: 1 - 2 * lead, Phase.TEXTURE: lead}

    def grid(self, intervals: int, shift: float = 1.0) -> Tensor:
        """Return `intervals` + 1 increasing global times, float64, from 0 to 1 + delta_t, including the phase boundaries.

        The timestep shift s maps the grid, rescaled to [0, 1], by t' = s t / (1 + (s - 1) t). The public code's plain linspace
        misses delta_t and 1, so it integrates texture and semantics over slightly wrong intervals. Raises `ConfigError` if
        there are fewer intervals than phases or the shift is not positive.
        """
        spans = self.phases()
        if intervals < len(spans):
            raise ConfigError(
                f"{intervals} intervals cannot cover the {len(spans)} phases of delta_t {self.delta_t}; "
                f"use {len(spans)} or more (heun needs two evaluations per interval)"
            )
        if not (shift > 0 and math.isfinite(shift)):
            raise ConfigError(f"timestep shift is {shift}, but it must be positive and finite; 1 means no shift")
        # points are evenly spaced before the shift, so the width of a phase there gives its number of points
        knots = [0.0, *(span.stop for span in spans)]
        positions = [_unshift(knot / self.end, shift) for knot in knots]
        widths = [right - left for left, right in pairwise(positions)]
        pieces = [torch.zeros(1, dtype=torch.float64)]
        for index, count in enumerate(_distribute(intervals, widths)):
            even = torch.linspace(positions[index], positions[index + 1], count + 1, dtype=torch.float64)[1:]
            piece = _shift(even, shift) * self.end
            piece[-1] = knots[index + 1]
            pieces.append(piece)
        return torch.cat(pieces)


def _shift(t: Tensor, shift: float) -> Tensor:
    return shift * t / (1 + (shift - 1) * t)


def _unshift(t: float, shift: float) -> float:
    return t / (shift - (shift - 1) * t)


def _distribute(intervals: int, widths: list[float]) -> list[int]:
    """Distribute intervals over phases: one each, then one at a time to the phase with the longest steps."""
    counts = [1] * len(widths)
    for _ in range(intervals - len(widths)):
        longest = max(range(len(widths)), key=lambda index: widths[index] / counts[index])
        counts[longest] += 1
    return counts
