"""Guidance: velocity functions in, one velocity function out. Also the oracle, which replaces the semantic velocity."""

from collections.abc import Callable

import torch
from torch import Tensor

from sfd_core.config import GuidanceParams
from sfd_core.diffusion.path import velocity as line_velocity
from sfd_core.diffusion.schedule import LocalTimes

VelocityFn = Callable[[Tensor, LocalTimes], Tensor]
"""x (N, C, H, W) and local times (N,) to a velocity (N, C, H, W)."""


def cfg(
    conditional: VelocityFn, unconditional: VelocityFn, texture: GuidanceParams, semantic: GuidanceParams, n_texture: int
) -> VelocityFn:
    """Return classifier-free guidance v = v_u + w (v_c - v_u).

    Each part has its own w and applies it only while its own time is in its interval.
    Sources: arXiv 2207.12598; intervals: arXiv 2404.07724.
    """
    return _extrapolate(conditional, unconditional, texture, semantic, n_texture)


def autoguidance(
    main: VelocityFn, weak: VelocityFn, texture: GuidanceParams, semantic: GuidanceParams, n_texture: int
) -> VelocityFn:
    """Return AutoGuidance v = v_weak + w (v_main - v_weak), both given the same labels; weights and intervals as in `cfg`.

    Source: arXiv 2406.02507, eq. 5.
    """
    return _extrapolate(main, weak, texture, semantic, n_texture)


def oracle(velocity: VelocityFn, x0: Tensor, semantic: Tensor, n_texture: int) -> VelocityFn:
    """Return `velocity` with its semantic part replaced by the exact line from the noise in `x0` to real latents.

    x0 is the (N, C, H, W) composite noise that integration starts from, `semantic` (N, C - n_texture, H, W) the normalised real
    semantic latents. Integrated, texture is generated from true semantics: the bound of what leading semantics can give.
    """
    line = line_velocity(x0[:, n_texture:], semantic)

    def led(x: Tensor, times: LocalTimes) -> Tensor:
        return torch.cat([velocity(x, times)[:, :n_texture], line], dim=1)

    return led


def _extrapolate(
    main: VelocityFn, reference: VelocityFn, texture: GuidanceParams, semantic: GuidanceParams, n_texture: int
) -> VelocityFn:
    def guided(x: Tensor, times: LocalTimes) -> Tensor:
        v = main(x, times)
        weights = [_weight(texture, times.t_tex), _weight(semantic, times.t_sem)]
        if x.shape[1] == n_texture:
            weights = weights[:1]
        # the reference network is half the cost: do not ask it where no weight would use it
        if all(bool((weight == 1).all()) for weight in weights):
            return v
        v_reference = reference(x, times)
        spans = [slice(0, n_texture), slice(n_texture, None)][: len(weights)]
        parts = zip(spans, weights, strict=True)
        return torch.cat([_lerp(v_reference[:, span], v[:, span], weight) for span, weight in parts], dim=1)

    return guided


def _weight(guidance: GuidanceParams, t: Tensor) -> Tensor:
    low, high = guidance.interval
    return torch.where((t >= low) & (t <= high), guidance.scale, 1.0).to(t)


def _lerp(reference: Tensor, main: Tensor, weight: Tensor) -> Tensor:
    weight = weight[:, None, None, None]
    # where the weight is 1 the main velocity must come through to the last bit
    return torch.where(weight == 1, main, reference + weight * (main - reference))
