"""Features of judged images against those of the reference -> named numbers, by torch-fidelity's functions.

Definitions are those of ADM's evaluator (Dhariwal and Nichol 2021, guided-diffusion `evaluations/evaluator.py`), so that
numbers compare with published ones: unbiased covariances; the Inception score of consecutive images, not of shuffled ones;
precision and recall with k = 3 over all judged and all reference images. One thing differs: ADM rounds squared distances of
precision and recall to float16, here they are float32.

A number is called `fid`, `sfid` or `is` only if Inception with the standard weights made it; otherwise its name says the
extractor: `fd_efficientnet_lite2`. Shapes: N judged images, M reference images, D features.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from sfd_core.evaluation.extractors import FEATURES, LOGITS, SPATIAL
from sfd_core.evaluation.frechet import FrechetReference, require_finite
from sfd_core.host.errors import DataError

NEIGHBOURHOOD = 3
KID_SUBSETS = 100
SUBSET_SEED = 2020
"""torch-fidelity's default; the same subsets for every judged set of one size."""
IS_SPLIT = 5000
"""Images of one split of the Inception score; the last may be smaller, and counts as much."""
LARGEST_DENSE = 10_000
"""Above so many images precision and recall take their distances in parts."""
DISTANCE_ROWS = 2000
"""Images on each side of such a part; the largest matrix is this by the number of images."""

TITLES = {"inception": {"fd": "fid", "sfd": "sfid", "is": "is"}}
"""Names that only the standard network's numbers bear."""


@dataclass(frozen=True)
class Reference:
    """What judged images are compared with."""

    features: Tensor
    """(M, D) of the images that KID, precision and recall see."""
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
    subset = _subset_size(samples, reference_images, kid_subset_size)
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
            f"{len(features)} images cannot be judged: precision and recall need more than {NEIGHBOURHOOD + 1}; "
            "raise evaluate.snapshot_samples and evaluate.final_samples"
        )
    values = {"fd": reference.frechet.distance(features), "kid": _kid(features, reference.features, kid_subset_size)}
    values |= _precision_recall(features, reference.features)
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
    size = _subset_size(len(features), len(reference), subset_size)
    metric = kid_features_to_metric(
        features,
        reference,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=size,
        rng_seed=SUBSET_SEED,
        verbose=False,
    )
    return float(metric[KEY_METRIC_KID_MEAN])


def _precision_recall(features: Tensor, reference: Tensor) -> dict[str, float]:
    # Distances do not change with the origin, but float32 keeps more of them near it.
    origin = reference.mean(dim=0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    in_parts = max(len(features), len(reference)) > LARGEST_DENSE
    metric = prc_features_to_metric(
        (features - origin).to(device),
        (reference - origin).to(device),
        prc_neighborhood=NEIGHBOURHOOD,
        prc_batch_size=DISTANCE_ROWS if in_parts else LARGEST_DENSE,
        save_cpu_ram=in_parts,
        verbose=False,
    )
    return {"precision": float(metric[KEY_METRIC_PRECISION]), "recall": float(metric[KEY_METRIC_RECALL])}


def _subset_size(samples: int, reference_images: int, wanted: int) -> int:
    return int(np.min([samples, reference_images, wanted]))


def concatenated(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the layers of batches into one dictionary of the same keys. Raises `DataError` if there are none."""
    if not parts:
        raise DataError("no images were given, so there is nothing to judge")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
