"""Fréchet distance between normal distributions fitted to features (Heusel et al. 2017, eq. 6), fast against one reference.

d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2). With S1 = L L^T the last trace is the sum of the square roots of the
eigenvalues of the symmetric L^T S2 L, which has the eigenvalues of S1 S2. torch-fidelity takes those of the general S1 S2:
equal to six digits, but an order of magnitude slower. Shapes: N images, D features, r <= D rank of the reference.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfd_core.host.errors import DataError, NumericsError

BLOCK = 8192
"""Images whose features are held in float64 at a time."""


class FeatureMoments:
    """Mean and covariance of features in one pass, in float64; any number of batches."""

    def __init__(self) -> None:
        self.count = 0
        self._shift: Tensor | None = None
        self._sum = self._products = torch.zeros(0, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add features (N, D). Raises `NumericsError` for values that are not finite."""
        require_finite(features)
        values = features.double()
        if self._shift is None:
            # Features far from zero would cancel in the products; near their mean they do not.
            self._shift = values.mean(dim=0)
            self._sum = torch.zeros_like(self._shift)
            self._products = torch.zeros(len(self._shift), len(self._shift), dtype=torch.float64)
        centred = values - self._shift
        self.count += len(values)
        self._sum += centred.sum(dim=0)
        self._products.addmm_(centred.T, centred)

    @property
    def mean(self) -> Tensor:
        """Mean (D,). Raises `DataError` if there are no features."""
        if self._shift is None:
            raise DataError("no features were given, so they have no mean; check that the set of images is not empty")
        return self._shift + self._sum / self.count

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (D, D). Raises `DataError` for fewer than two images."""
        if self.count < 2:
            raise DataError(f"{self.count} images have no covariance; a Fréchet distance needs at least two")
        return (self._products - torch.outer(self._sum, self._sum) / self.count) / (self.count - 1)


@dataclass(frozen=True)
class FrechetReference:
    """A normal distribution that others are compared with: mean (D,) and L (D, r), covariance = L L^T; float64."""

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, moments: FeatureMoments) -> "FrechetReference":
        """Factor a covariance; directions without variance are left out."""
        return cls.of_statistics(moments.mean, moments.covariance)

    @classmethod
    def of_statistics(cls, mean: Tensor, covariance: Tensor) -> "FrechetReference":
        """Factor a symmetric covariance (D, D); both are taken as float64."""
        values, vectors = torch.linalg.eigh(covariance.double())
        kept = values > 0
        return cls(mean.double(), vectors[:, kept] * values[kept].sqrt())

    @property
    def covariance(self) -> Tensor:
        """Covariance (D, D)."""
        return self.factor @ self.factor.T

    def distance(self, features: Tensor) -> float:
        """Return the squared Fréchet distance (as always reported) of features (N, D), N >= 2, to this distribution.

        The smaller Gram matrix of the projected features, N x N or r x r, has the wanted eigenvalues. Of many images only
        a block is ever held in float64.
        """
        require_finite(features)
        if len(features) < 2:
            raise DataError(f"a Fréchet distance needs at least two images, got {len(features)}; draw more samples")
        if len(features) > max(BLOCK, self.factor.shape[1]):
            return self._distance_of_many(features)
        values = features.double()
        mean = values.mean(dim=0)
        centred = (values - mean) / (len(values) - 1) ** 0.5
        projected = centred @ self.factor
        gram = projected @ projected.T if len(projected) < projected.shape[1] else projected.T @ projected
        cross = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
        traces = self.factor.square().sum() + centred.square().sum()
        return float((mean - self.mean).square().sum() + traces - 2 * cross)

    def _distance_of_many(self, features: Tensor) -> float:
        moments = FeatureMoments()
        for block in torch.split(features, BLOCK):
            moments.update(block)
        covariance = moments.covariance
        cross = torch.linalg.eigvalsh(self.factor.T @ covariance @ self.factor).clamp(min=0).sqrt().sum()
        traces = self.factor.square().sum() + covariance.trace()
        return float((moments.mean - self.mean).square().sum() + traces - 2 * cross)


def require_finite(features: Tensor) -> None:
    """Raise `NumericsError` if features (N, D) hold NaN or infinity."""
    finite = torch.isfinite(features).flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise NumericsError(
            f"features of image {int((~finite).nonzero()[0])} and {int((~finite).sum()) - 1} others are NaN or infinite; "
            "look at these images and at the extractor's weights"
        )
