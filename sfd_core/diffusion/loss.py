"""The training loss of velocity models, in float32: mse + cosine_weight * cosine + repa_weight * repa."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfd_core.diffusion.path import by_channel
from sfd_core.diffusion.schedule import Active

RepaMode = Literal["cosine", "cosine+mse"]


@dataclass(frozen=True)
class LossWeights:
    """beta of the semantic channels in the mse, and the weights of the cosine and REPA terms."""

    semantic: float
    cosine: float
    repa: float = 0.0


@dataclass(frozen=True)
class LossTerms:
    """The loss and its unweighted terms (scalars, float32); REPA is zero if it is off."""

    total: Tensor
    mse: Tensor
    cosine: Tensor
    repa: Tensor

    def named(self) -> dict[str, Tensor]:
        """Return all terms by name, the total as `loss`."""
        return {"loss": self.total, "mse": self.mse, "cosine": self.cosine, "repa": self.repa}


def flow_loss(
    prediction: Tensor,
    target: Tensor,
    n_texture: int,
    weights: LossWeights,
    active: Active | None = None,
    repa: Tensor | None = None,
) -> LossTerms:
    """Return the loss of predicted velocities (N, C, H, W).

    mse: mean squared error over N, C, H, W, with the semantic channels multiplied by beta. cosine: mean over positions of
    1 - cosine similarity over all channels (in the public code, not in the paper). `active` (ablation `mask_clamped`) leaves a
    latent out of both terms where its time is clamped; the mean still runs over all elements, so the other latent keeps its
    weight. `repa` is the result of `repa_loss`. Raises `ValueError` if it is missing while its weight is positive.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction has shape {tuple(prediction.shape)} but the target {tuple(target.shape)}")
    if weights.repa > 0 and repa is None:
        raise ValueError(f"the REPA weight is {weights.repa} but no REPA term was given; compute it with repa_loss")
    prediction, target = prediction.float(), target.float()
    if active is not None:
        keep = by_channel(active.texture, active.semantic, n_texture, target.shape[1])
        prediction, target = prediction * keep, target * keep
    squared = (prediction - target).square()
    mse = torch.cat([squared[:, :n_texture], weights.semantic * squared[:, n_texture:]], dim=1).mean()
    cosine = (1 - F.cosine_similarity(prediction, target, dim=1)).mean()
    repa = torch.zeros_like(mse) if repa is None else repa.float()
    return LossTerms(mse + weights.cosine * cosine + weights.repa * repa, mse, cosine, repa)


def velocity_errors(prediction: Tensor, target: Tensor, n_texture: int) -> Tensor:
    """Return each image's mean squared velocity error of texture and, if there are semantics, of semantics.

    Float64 (N, 1 or 2), of velocities (N, C, H, W).
    """
    squared = (prediction.double() - target.double()).square()
    parts = [squared[:, :n_texture], squared[:, n_texture:]] if squared.shape[1] > n_texture else [squared]
    return torch.stack([part.mean((1, 2, 3)) for part in parts], dim=1)


def repa_loss(projected: Tensor, tokens: Tensor, mode: RepaMode) -> Tensor:
    """Return the misalignment of projected hidden states with the encoder's raw tokens, both (N, D, g, g), a scalar.

    `cosine`: mean over tokens of 1 - cosine similarity (REPA, arXiv 2410.06940, eq. 8, up to the constant). `cosine+mse`: the
    average of that and the mean squared error. Raises `ValueError` for shapes that do not match.
    """
    if projected.shape != tokens.shape:
        raise ValueError(f"hidden states {tuple(projected.shape)} cannot be aligned with tokens {tuple(tokens.shape)}")
    projected, target = (values.float().flatten(2).transpose(1, 2) for values in (projected, tokens))
    cosine = (1 - F.cosine_similarity(projected, target, dim=-1)).mean()
    if mode == "cosine":
        return cosine
    return (cosine + (projected - target).square().mean()) / 2
