"""The linear path from noise x0 to data x1, with separate times for texture and semantics.

N images, C channels (texture, then semantic).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfd_core.diffusion.schedule import LocalTimes

LEAST_REST = 0.05
"""Least 1 - t by which a velocity follows from predicted data."""


@dataclass(frozen=True)
class PathSample:
    """A point x_t on the path and the velocity there, both (N, C, H, W)."""

    x_t: Tensor
    velocity: Tensor


def by_channel(texture: Tensor, semantic: Tensor, n_texture: int, channels: int) -> Tensor:
    """Return the value of each channel (N, C, 1, 1): `texture` (N,) of the first `n_texture`, `semantic` (N,) of the others."""
    parts = [texture[:, None].expand(-1, n_texture), semantic[:, None].expand(-1, channels - n_texture)]
    return torch.cat(parts, dim=1)[:, :, None, None]


def interpolate(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """Return x_t = t x1 + (1 - t) x0 for x0, x1 (N, C, H, W); t is (N,) or broadcasts. Exact at both ends."""
    t = t[:, None, None, None] if t.dim() == 1 else t
    return t * x1 + (1 - t) * x0


def velocity(x0: Tensor, x1: Tensor) -> Tensor:
    """Return the velocity x1 - x0, constant along the path."""
    return x1 - x0


def predict_data(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Return the data x1 = x_t + (1 - t) v predicted by velocity `v` at `x_t`; t is (N,) or broadcasts."""
    t = t[:, None, None, None] if t.dim() == 1 else t
    return x_t + (1 - t) * v


def velocity_to(data: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Return the velocity from `x_t` to predicted data, (data - x_t) / (1 - t); t broadcasts.

    1 - t is at least 0.05, which bounds the weight of the velocity loss on late data (JiT, arXiv 2511.13720).
    """
    return (data - x_t) / (1 - t).clamp(min=LEAST_REST)


def sample_path(x0: Tensor, x1: Tensor, times: LocalTimes, n_texture: int) -> PathSample:
    """Return the composite point with texture at t_tex (N,) and semantics at t_sem (N,), and the velocity target."""
    return PathSample(interpolate(x0, x1, by_channel(times.t_tex, times.t_sem, n_texture, x1.shape[1])), velocity(x0, x1))
