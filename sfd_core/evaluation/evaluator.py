"""The extractors of an experiment with their reference: images to features, features to numbers with their protocol."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypedDict

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfd_core.evaluation import metrics
from sfd_core.evaluation.classes import class_table
from sfd_core.evaluation.extractors import FEATURES, DinoV2, EfficientNetLite0, EfficientNetLite2, Extractor
from sfd_core.evaluation.inception import Inception
from sfd_core.evaluation.neighbours import Nearest, nearest_images
from sfd_core.evaluation.reference import ReferenceSet
from sfd_core.experiment.params import ExtractorName, ReferenceParams
from sfd_core.host.errors import DataError, IdentityError

EXTRACTORS: dict[ExtractorName, Callable[..., Extractor]] = {
    "inception": Inception,
    "dinov2": DinoV2,
    "efficientnet_lite2": EfficientNetLite2,
    "efficientnet_lite0": EfficientNetLite0,
}

Features = Mapping[str, Tensor]
"""`<extractor>/<layer>` -> float32 (N, D), on the CPU."""


class Drawn(TypedDict):
    """How the evaluated images came about."""

    images: str
    """What they are, such as `samples` or `held-out images and mirror images`."""
    labels: str
    """How their classes were chosen, such as `class-balanced`."""
    seed: int | None
    """None for images that another program drew."""
    sampler: str
    evaluations: int | None
    """Network evaluations an image; None for images that no sampler drew."""
    guidance: str
    recipe: Mapping[str, Any] | None
    """All that is needed to draw them again: artifact, hashes of weights, every value of the sampler; see `rerun.recipe`."""


class Protocol(Drawn):
    """Everything that a number depends on beside the model: without it a distance means nothing."""

    extractor: str
    weights: str
    """sha256 of the extractor's weights."""
    input_size: int
    """Side in pixels that the extractor sees."""
    preprocessing: str
    samples: int
    """How many images were evaluated."""
    reference: str
    reference_images: int
    reference_digest: str
    """Hash of the images' shard, or of the ADM reference file."""
    settings: str
    """Of the measure: neighbours, subsets, seeds."""


@dataclass(frozen=True)
class Number:
    """A measured value with its protocol."""

    value: float
    protocol: Protocol


def load_extractor(name: ExtractorName, inception_weights: str | None = None) -> Extractor:
    """Return an extractor, on the GPU where there is one.

    Raises `ResourceError` for weights that are missing and cannot be fetched.
    """
    extractor = EXTRACTORS[name](inception_weights) if name == "inception" else EXTRACTORS[name]()
    return extractor.to("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Evaluator:
    """Extractors with the real images they compare with; the first is the main one."""

    extractors: Mapping[ExtractorName, Extractor]
    references: Mapping[ExtractorName, ReferenceSet]
    batch_size: int
    kid_subset_size: int

    @classmethod
    def load(cls, folder: Path, params: ReferenceParams, kid_subset_size: int, images_digest: str | None = None) -> Self:
        """Load `params.extractors` and what stage `reference` wrote to `folder` about them.

        Raises `IdentityError` if the reference was made with other weights or, where `images_digest` is given, of other
        training images; `DataError` if it is missing; and what `load_extractor` raises.
        """
        extractors = {name: load_extractor(name, params.inception_weights) for name in params.extractors}
        references = {name: ReferenceSet.load(folder / name) for name in params.extractors}
        for name, reference in references.items():
            reference.require(extractors[name].identity, params.adm_npz if name == "inception" else None)
            if images_digest not in {None, reference.digest}:
                raise IdentityError(
                    f"{folder / name} was made of other training images than those of now; run `dvc repro reference`"
                )
        return cls(extractors, references, params.batch_size, kid_subset_size)

    @property
    def main(self) -> ExtractorName:
        """The extractor that comes first in `reference.extractors`."""
        return next(iter(self.extractors))

    @property
    def keys(self) -> list[str]:
        """Identity of every extractor, for caches of features."""
        return [extractor.identity.key for extractor in self.extractors.values()]

    @property
    def row_bytes(self) -> int:
        """Bytes that the features of one image take."""
        blank = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
        return sum(values.nbytes for values in self.features(blank).values())

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Return all layers of all extractors of uint8 images (N, 3, H, W); what `score` and `nearest` take."""
        return {
            f"{name}/{layer}": values
            for name, extractor in self.extractors.items()
            for layer, values in extractor.extract(images, self.batch_size).items()
        }

    def features_of(self, batches: Iterable[Tensor]) -> dict[str, Tensor]:
        """Return the features of images that come batch by batch and are not kept. Raises `DataError` if there are none."""
        parts = [self.features(images) for images in batches]
        if not parts:
            raise DataError("no images were given, so there is nothing to measure")
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def score(self, features: Features) -> dict[str, float]:
        """Return every number by name; see `metrics.score` and `metrics.number_name`."""
        values = {}
        for name, reference in self.references.items():
            layers = {layer: features[f"{name}/{layer}"] for layer in self.extractors[name].layers}
            for kind, value in metrics.score(layers, reference.reference, self.kid_subset_size).items():
                values[metrics.number_name(kind, reference.identity.name)] = value
        return values

    def numbers(self, features: Features, drawn: Drawn) -> dict[str, Number]:
        """Return every number with its protocol."""
        protocols = self.protocols(len(features[f"{self.main}/{FEATURES}"]), drawn)
        return {name: Number(value, protocols[name]) for name, value in self.score(features).items()}

    def protocols(self, samples: int, drawn: Drawn) -> dict[str, Protocol]:
        """Return the protocol of every number that `numbers` would measure of so many images."""
        return {
            metrics.number_name(kind, reference.identity.name): Protocol(
                extractor=reference.identity.name,
                weights=reference.identity.weights,
                input_size=reference.identity.input_size,
                preprocessing=reference.identity.preprocessing,
                samples=samples,
                reference=reference.description,
                reference_images=reference.images,
                reference_digest=reference.source_digest,
                settings=metrics.settings(kind, samples, reference.compared_images, self.kid_subset_size),
                **drawn,
            )
            for name, reference in self.references.items()
            for kind in metrics.kinds(self.extractors[name].layers)
        }

    def classes(self, features: Features, labels: NDArray[np.int64], names: Sequence[str]) -> pd.DataFrame:
        """Return how the samples spread over classes, by the main extractor; `labels` are those of the train shard's rows."""
        reference = self.references[self.main]
        return class_table(features[f"{self.main}/{FEATURES}"], reference.features, labels[reference.rows], names)

    def nearest(self, features: Features, k: int) -> Nearest:
        """Return the k nearest training images in the feature space of the main extractor."""
        reference = self.references[self.main]
        return nearest_images(features[f"{self.main}/{FEATURES}"], reference.features, reference.rows, k)


def head(features: Features, count: int) -> dict[str, Tensor]:
    """Return the features of the first `count` images: numbers of different sample counts do not compare."""
    return {name: values[:count] for name, values in features.items()}
