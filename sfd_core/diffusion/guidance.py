"""Guidance of velocity functions, and the oracle, which replaces the semantic velocity."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sfd_core.diffusion.path import velocity as line_velocity
from sfd_core.diffusion.schedule import SharedTimes
from sfd_core.experiment.params import GuidanceParams

NO_GUIDANCE = GuidanceParams(scale=1.0, interval=[0.0, 1.0])

VelocityFn = Callable[[Tensor, SharedTimes], Tensor]
"""Maps x (N, C, H, W) and local times (N,), equal for all images, to a velocity (N, C, H, W)."""

BothFn = Callable[[Tensor, SharedTimes], tuple[Tensor, Tensor]]
"""The same, with the velocities of a main and a reference network."""


def cfg(conditional: VelocityFn, both: BothFn, texture: GuidanceParams, semantic: GuidanceParams, n_texture: int) -> VelocityFn:
    """Return classifier-free guidance v = v_u + w (v_c - v_u); `both` returns v_c and v_u from one pass.

    Texture and semantics each have a w, used only while their own time is in their interval and their latent changes. While no
    w is used, only `conditional` is evaluated.
    Sources: arXiv 2207.12598; intervals: arXiv 2404.07724.
    """
    return _extrapolate(conditional, both, texture, semantic, n_texture)


def autoguidance(
    main: VelocityFn, weak: VelocityFn, texture: GuidanceParams, semantic: GuidanceParams, n_texture: int
) -> VelocityFn:
    """Return AutoGuidance v = v_weak + w (v_main - v_weak), both with the same labels; weights and intervals as in `cfg`.

    Source: arXiv 2406.02507, eq. 5.
    """
    return _extrapolate(main, lambda x, times: (main(x, times), weak(x, times)), texture, semantic, n_texture)


def internal(main: VelocityFn, both: BothFn, texture: GuidanceParams, semantic: GuidanceParams, n_texture: int) -> VelocityFn:
    """Return v = v_inner + w (v_main - v_inner), where an inner head of the network gives v_inner in the same pass (`both`).

    Weights and intervals as in `cfg`; the extrapolation is AutoGuidance's, with a weaker network inside the stronger one.
    """
    return _extrapolate(main, both, texture, semantic, n_texture)


def semantic_guidance(
    main: VelocityFn, reference: VelocityFn, x0: Tensor, texture: GuidanceParams, n_texture: int
) -> VelocityFn:
    """Return v = v_a + w (v - v_a) for texture, where v_a is what `reference` says without semantics; weights as in `cfg`.

    Without means: replaced by their noise in x0 (N, C, H, W), at time 0. `reference` is `main` itself, or a weaker network as
    in `autoguidance`, which is then pushed away from in both respects. Either needs no label, but a training with absent
    semantics. The semantic velocity stays as it is.
    Source: representation guidance of ReDi (arXiv 2504.16064).
    """

    def absent(x: Tensor, times: SharedTimes) -> Tensor:
        x = torch.cat([x[:, :n_texture], x0[:, n_texture:]], dim=1)
        return reference(x, replace(times, t_sem=torch.zeros_like(times.t_sem)))

    return autoguidance(main, absent, texture, NO_GUIDANCE, n_texture)


def oracle(velocity: VelocityFn, x0: Tensor, semantic: Tensor, n_texture: int) -> VelocityFn:
    """Return `velocity` with its semantic part replaced by the exact line from the noise `x0` to real latents.

    x0 (N, C, H, W) is the composite noise at the start of integration, `semantic` (N, C - n_texture, H, W) holds normalised
    semantic latents of real images. If the path finishes them before texture begins, texture is drawn as it is distributed
    given these semantics, which bounds what semantics can give. Where both move at once it is not: the network's velocity of
    texture suits semantics that react to it, and texture that knows of the line only what the noisy semantics show falls
    behind (the replacement method of arXiv 2204.03458, section 3.1, has the same fault).
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
        # the reference network is half the cost: skip it where no weight uses it
        if w_texture == w_semantic == 1:
            return main(x, times)
        v, v_reference = both(x, times)
        parts = [(slice(0, n_texture), w_texture), (slice(n_texture, None), w_semantic)]
        return torch.cat([_lerp(v_reference[:, part], v[:, part], weight) for part, weight in parts], dim=1)

    return guided


def _weight(guidance: GuidanceParams, t: float, moves: bool) -> float:
    # in float32, like the times of the networks: a grid point at the end of an interval must not depend on the last float64 bit
    now, low, high = torch.tensor([t, *guidance.interval], dtype=torch.float32).tolist()
    return guidance.scale if moves and low <= now <= high else 1.0


def _lerp(reference: Tensor, main: Tensor, weight: float) -> Tensor:
    # with weight 1 the main velocity must stay exactly the same
    return main if weight == 1 else reference + weight * (main - reference)
