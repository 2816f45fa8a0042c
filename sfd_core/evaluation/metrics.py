"""Features of judged images against those of the reference -> named numbers, by torch-fidelity's functions.

A number is called `fid`, `sfid` or `is` only if Inception with the standard weights made it; otherwise its name says the
extractor: `fd_efficientnet_lite2`. Shapes: N judged images, M reference images, D features.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from sfd_core.errors import DataError
from sfd_core.evaluation.extractors import FEATURES, LOGITS, SPATIAL
from sfd_core.evaluation.frechet import FrechetReference, require_finite

NEIGHBOURHOOD = 3
KID_SUBSETS = 100
SUBSET_SEED = 2020
"""torch-fidelity's default; the same subsets for every judged set of one size."""
IS_SPLITS = 10
LARGEST_DENSE = 10_000
"""Above so many images precision and recall take their distances in parts."""

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
        "is": f"mean of {IS_SPLITS} splits, seed {SUBSET_SEED}",
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
        splits = isc_features_to_metric(layers[LOGITS], min(IS_SPLITS, len(features)), True, SUBSET_SEED)
        values["is"] = float(splits[KEY_METRIC_ISC_MEAN])
    if SPATIAL in layers and reference.spatial is not None:
        values["sfd"] = reference.spatial.distance(layers[SPATIAL])
    return values


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
    metric = prc_features_to_metric(
        features - origin,
        reference - origin,
        prc_neighborhood=NEIGHBOURHOOD,
        save_cpu_ram=max(len(features), len(reference)) > LARGEST_DENSE,
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
