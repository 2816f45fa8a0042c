"""Fréchet distances of resampled images: how far a distance would move with other images of the same kind.

Two sets drawn from the same noise are resampled by the same rows: the difference of their distances has far less noise than
either distance. Shapes: N images, D features, B resamples.
"""

import torch
from torch import Tensor

from sfd_core.evaluation.metrics import FrechetReference
from sfd_core.host.seeding import generator


def resampled_rows(images: int, resamples: int, seed: int) -> Tensor:
    """Draw rows with replacement, int64 (B, N)."""
    return torch.randint(images, (resamples, images), generator=generator(seed, "bootstrap"))


def resampled_distances(features: Tensor, reference: FrechetReference, rows: Tensor) -> Tensor:
    """Return the squared Fréchet distance (B,) to `reference` of the images `rows` (B, N) of features (N, D), float64.

    Inner products of the images, taken once, hold all that a resample needs: mean, trace and the eigenvalues of the product of
    the covariances.
    """
    offset = features.double() - reference.mean
    plain, projected = offset @ offset.T, offset @ reference.factor
    products = projected @ projected.T
    return torch.stack([_distance(plain[row][:, row], products[row][:, row], reference) for row in rows])


def _distance(plain: Tensor, products: Tensor, reference: FrechetReference) -> Tensor:
    freedom = len(plain) - 1
    cross: Tensor = torch.linalg.eigvalsh(_centred(products) / freedom).clamp(min=0).sqrt().sum()
    return plain.mean() + _centred(plain).trace() / freedom + reference.factor.square().sum() - 2 * cross


def _centred(products: Tensor) -> Tensor:
    return products - products.mean(0) - products.mean(1, keepdim=True) + products.mean()
