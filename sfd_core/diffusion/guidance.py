"""Guidance: velocity functions in, one velocity function out. Also the oracle, which replaces the semantic velocity."""

from collections.abc import Callable

import torch
from torch import Tensor

from sfd_core.diffusion.path import velocity as line_velocity
from sfd_core.diffusion.schedule import SharedTimes
from sfd_core.experiment.params import GuidanceParams

VelocityFn = Callable[[Tensor, SharedTimes], Tensor]
"""x (N, C, H, W) and local times (N,), the same for all images, to a velocity (N, C, H, W)."""

BothFn = Callable[[Tensor, SharedTimes], tuple[Tensor, Tensor]]
"""The same to the velocities of a main and a reference network."""


def cfg(conditional: VelocityFn, both: BothFn, texture: GuidanceParams, semantic: GuidanceParams, n_texture: int) -> VelocityFn:
    """Return classifier-free guidance v = v_u + w (v_c - v_u); `both` gives v_c and v_u, which one pass can compute.

    Each part has its own w and applies it only while its own time is in its interval and the part moves. Where no part applies
    one, `conditional` alone is asked.
    Sources: arXiv 2207.12598; intervals: arXiv 2404.07724.
    """
    return _extrapolate(conditional, both, texture, semantic, n_texture)


def autoguidance(
    main: VelocityFn, weak: VelocityFn, texture: GuidanceParams, semantic: GuidanceParams, n_texture: int
) -> VelocityFn:
    """Return AutoGuidance v = v_weak + w (v_main - v_weak), both given the same labels; weights and intervals as in `cfg`.

    Source: arXiv 2406.02507, eq. 5.
    """
    return _extrapolate(main, lambda x, times: (main(x, times), weak(x, times)), texture, semantic, n_texture)


def oracle(velocity: VelocityFn, x0: Tensor, semantic: Tensor, n_texture: int) -> VelocityFn:
    """Return `velocity` with its semantic part replaced by the exact line from the noise in `x0` to real latents.

    x0 is the (N, C, H, W) composite noise that integration starts from, `semantic` (N, C - n_texture, H, W) the normalised real
    semantic latents. Integrated, texture is generated from true semantics: the bound of what leading semantics can give.
    """
    line = line_velocity(x0[:, n_texture:], semantic)

    def led(x: Tensor, times: SharedTimes) -> Tensor:
        return torch.cat([velocity(x, times)[:, :n_texture], line], dim=1)

    return led


def _extrapolate(
    main: VelocityFn, both: BothFn, texture: GuidanceParams, semantic: GuidanceParams, n_texture: int
) -> VelocityFn:
    def guided(x: Tensor, times: SharedTimes) -> Tensor:
        w_texture = _weight(texture, times.texture, times.phase.texture_acts)
        w_semantic = _weight(semantic, times.semantic, times.phase.semantic_acts and x.shape[1] > n_texture)
        # the reference network is half the cost: do not ask it where no weight would use it
        if w_texture == w_semantic == 1:
            return main(x, times)
        v, v_reference = both(x, times)
        parts = [(slice(0, n_texture), w_texture), (slice(n_texture, None), w_semantic)]
        return torch.cat([_lerp(v_reference[:, part], v[:, part], weight) for part, weight in parts], dim=1)

    return guided


def _weight(guidance: GuidanceParams, t: float, moves: bool) -> float:
    # in float32, as networks see the time: a grid point on the end of an interval stays there whatever its last bit in float64
    now, low, high = torch.tensor([t, *guidance.interval], dtype=torch.float32).tolist()
    return guidance.scale if moves and low <= now <= high else 1.0


def _lerp(reference: Tensor, main: Tensor, weight: float) -> Tensor:
    # where the weight is 1 the main velocity must come through to the last bit
    return main if weight == 1 else reference + weight * (main - reference)
