"""Features of drawn images against those of the reference -> values.

Definitions are those of ADM's evaluator (Dhariwal and Nichol 2021, guided-diffusion `evaluations/evaluator.py`), so that
numbers compare with published ones: unbiased covariances; the Inception score of consecutive images, not of shuffled ones;
precision and recall with k = 3 over all drawn and all reference images. One thing differs: ADM rounds squared distances of
precision and recall to float16, here they are float32. KID and the Inception score are torch-fidelity's.

A number is called `fid`, `sfid` or `is` only if Inception with the standard weights made it; otherwise its name says the
extractor: `fd_efficientnet_lite2`. Shapes: N drawn images, M reference images, D features, r <= D rank of the reference.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from sfd_core.evaluation.extractors import FEATURES, LOGITS, SPATIAL
from sfd_core.host.errors import DataError, NumericsError

NEIGHBOURHOOD = 3
KID_SUBSETS = 100
SUBSET_SEED = 2020
"""torch-fidelity's default; the same subsets for every set of one size."""
IS_SPLIT = 5000
"""Images of one split of the Inception score; the last may be smaller, and counts as much."""
DISTANCE_ROWS = 2000
"""Images whose distances to all others are held at a time."""
BLOCK = 8192
"""Images whose features are held in float64 at a time."""
TITLES = {"inception": {"fd": "fid", "sfd": "sfid", "is": "is"}}
"""Names that only the standard network's numbers bear."""


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
    """A normal distribution that features are compared with: mean (D,) and factor L (D, r), covariance S1 = L L^T; float64.

    Fréchet distance of two normal distributions (Heusel et al. 2017, eq. 6):
    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2). The last trace is the sum of the square roots of the eigenvalues of
    the symmetric L^T S2 L, which has those of S1 S2. torch-fidelity takes the eigenvalues of S1 S2 itself: equal to six
    digits, but an order of magnitude slower.
    """

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


@dataclass(frozen=True)
class Reference:
    """What drawn images are compared with."""

    features: Tensor
    """(M, D) of the images that KID, precision and recall see."""
    radii: Tensor
    """(M,) their `neighbour_radii`, which take longer than all other numbers."""
    frechet: FrechetReference
    """Of all reference images."""
    spatial: FrechetReference | None
    """For sFID."""


def number_name(kind: str, extractor: str) -> str:
    """Return the name of a number of kind fd, sfd (spatial), kid, precision, recall or is, measured by `extractor`."""
    return TITLES.get(extractor, {}).get(kind, f"{'sfid' if kind == 'sfd' else kind}_{extractor}")


def kinds(layers: Collection[str]) -> list[str]:
    """Return the kinds of numbers that these layers of an extractor give."""
    further = {LOGITS: "is", SPATIAL: "sfd"}
    return ["fd", "kid", "precision", "recall", *(kind for layer, kind in further.items() if layer in layers)]


def settings(kind: str, samples: int, reference_images: int, kid_subset_size: int) -> str:
    """Return what a kind of number depends on beside the features, in words, for its protocol."""
    subset = min(samples, reference_images, kid_subset_size)
    compared = f"{reference_images} reference images"
    return {
        "fd": "all features, unbiased covariances",
        "sfd": "first 7 channels of mixed_6, 17 x 17; all features, unbiased covariances",
        "kid": f"mean of {KID_SUBSETS} subsets of {subset}, cubic kernel, seed {SUBSET_SEED}; {compared}",
        "precision": f"k = {NEIGHBOURHOOD}; {compared}",
        "recall": f"k = {NEIGHBOURHOOD}; {compared}",
        "is": f"mean over splits of {min(IS_SPLIT, samples)} consecutive images in the drawn order",
    }[kind]


def score(layers: Mapping[str, Tensor], reference: Reference, kid_subset_size: int) -> dict[str, float]:
    """Return kind -> value for the layers of one extractor, every Tensor (N, D).

    fd: Fréchet distance (Heusel et al. 2017); kid (Binkowski et al. 2018, subsets of at most `kid_subset_size`); precision and
    recall (Kynkaanniemi et al. 2019, k = 3); with Inception also sfd = sFID (Nash et al. 2021) and is (Salimans et al. 2016).
    Raises `DataError` for too few images, `NumericsError` for features that are not finite.
    """
    features = layers[FEATURES]
    require_finite(features)
    if len(features) <= NEIGHBOURHOOD + 1:
        raise DataError(
            f"{len(features)} images cannot be measured: precision and recall need more than {NEIGHBOURHOOD + 1}; "
            "draw more (evaluate.snapshot_samples and evaluate.final_samples)"
        )
    values = {"fd": reference.frechet.distance(features), "kid": _kid(features, reference.features, kid_subset_size)}
    values |= _precision_recall(features, reference)
    if LOGITS in layers:
        values["is"] = inception_score(layers[LOGITS])
    if SPATIAL in layers and reference.spatial is not None:
        values["sfd"] = reference.spatial.distance(layers[SPATIAL])
    return values


def inception_score(logits: Tensor) -> float:
    """Return exp of the mean divergence of class probabilities from their mean, averaged over splits of 5,000 images.

    `logits` (N, classes) are without bias. A split is consecutive images as they were drawn, as in ADM's evaluator, so the
    score depends on the order: a split that lacks classes scores lower. Labels that cycle fill every split alike.
    """
    return float(
        np.mean([isc_features_to_metric(part, 1, False)[KEY_METRIC_ISC_MEAN] for part in torch.split(logits, IS_SPLIT)])
    )


def _kid(features: Tensor, reference: Tensor, subset_size: int) -> float:
    metric = kid_features_to_metric(
        features,
        reference,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=min(len(features), len(reference), subset_size),
        rng_seed=SUBSET_SEED,
        verbose=False,
    )
    return float(metric[KEY_METRIC_KID_MEAN])


def neighbour_radii(features: Tensor) -> Tensor:
    """Return the distance (N,) of every image to its k-th nearest other one; features (N, D), k = 3."""
    centred = features - features.mean(dim=0)
    parts = (_distances(part, centred) for part in torch.split(centred, DISTANCE_ROWS))
    return torch.cat([part.topk(NEIGHBOURHOOD + 1, largest=False).values[:, -1] for part in parts])


def _precision_recall(features: Tensor, reference: Reference) -> dict[str, float]:
    """Return the shares of drawn images within the radius of some real one, and of real ones within that of a drawn one."""
    # distances do not change with the origin, but float32 keeps more of them near it
    origin = reference.features.mean(dim=0)
    radii, drawn = neighbour_radii(features), features - origin
    precise, recalled = torch.zeros(len(drawn), dtype=torch.bool), 0
    for part, reach in zip(*(torch.split(of, DISTANCE_ROWS) for of in (reference.features, reference.radii)), strict=True):
        distances = _distances(part - origin, drawn)
        precise |= (distances <= reach[:, None]).any(dim=0)
        recalled += int((distances <= radii).any(dim=1).sum())
    return {"precision": float(precise.double().mean()), "recall": recalled / len(reference.features)}


def _distances(some: Tensor, others: Tensor) -> Tensor:
    """Return Euclidean distances (N, M) of features (N, D) to others (M, D), on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.cdist(some.to(device), others.to(device)).cpu()


def require_finite(features: Tensor) -> None:
    """Raise `NumericsError` if features (N, D) hold NaN or infinity."""
    finite = torch.isfinite(features).flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise NumericsError(
            f"features of image {int((~finite).nonzero()[0])} and {int((~finite).sum()) - 1} others are NaN or infinite; "
            "look at these images and at the extractor's weights"
        )
