"""All extractors of an experiment with their reference: images in, numbers with protocols out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from sfd_core.evaluation import metrics
from sfd_core.evaluation.extractors import FEATURES, DinoV2, EfficientNetLite0, EfficientNetLite2, JudgeNetwork
from sfd_core.evaluation.inception import Inception
from sfd_core.evaluation.neighbours import Nearest, nearest_images
from sfd_core.evaluation.protocol import Drawn, Number, Protocol
from sfd_core.evaluation.reference import ReferenceSet, layers_in_batches
from sfd_core.experiment.params import ExtractorName, ReferenceParams
from sfd_core.host.errors import ConfigError, IdentityError

EXTRACTORS: dict[ExtractorName, type[JudgeNetwork]] = {
    "inception": Inception,
    "dinov2": DinoV2,
    "efficientnet_lite2": EfficientNetLite2,
    "efficientnet_lite0": EfficientNetLite0,
}

Features = Mapping[str, Tensor]
"""`<extractor>/<layer>` -> float32 (N, D), on the CPU."""


def load_extractor(name: ExtractorName, inception_weights: str | None = None) -> JudgeNetwork:
    """Return an extractor with all its layers, on the GPU where there is one.

    Raises `ConfigError` for an unknown name, `ResourceError` for weights that are missing and cannot be fetched.
    """
    if name not in EXTRACTORS:
        raise ConfigError(f"unknown extractor {name!r}; reference.extractors takes {', '.join(EXTRACTORS)}")
    kind = EXTRACTORS[name]
    weights = inception_weights if name == "inception" else None
    extractor = kind(name, list(kind.provided), feature_extractor_weights_path=weights)
    extractor.to("cuda" if torch.cuda.is_available() else "cpu")
    return extractor


@dataclass(frozen=True)
class Judge:
    """Extractors with the real images they compare with; the first is the main one."""

    extractors: Mapping[ExtractorName, JudgeNetwork]
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

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Return all layers of all extractors of uint8 images (N, 3, H, W); what `score` and `nearest` take."""
        return {
            f"{name}/{layer}": values
            for name, extractor in self.extractors.items()
            for layer, values in layers_in_batches(extractor, images, self.batch_size).items()
        }

    def features_of(self, batches: Iterable[Tensor]) -> dict[str, Tensor]:
        """Return what `features` does of images that come batch by batch and are not kept."""
        return metrics.concatenated([self.features(images) for images in batches])

    @property
    def row_bytes(self) -> int:
        """Bytes that the layers of one image take."""
        blank = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
        return sum(values.nbytes for values in self.features(blank).values())

    @property
    def keys(self) -> list[str]:
        """Identity of every extractor, for caches of features."""
        return [extractor.identity.key for extractor in self.extractors.values()]

    def score(self, features: Features) -> dict[str, float]:
        """Return every number by name; see `metrics.score` and `metrics.number_name`."""
        return {
            metrics.number_name(kind, self.references[name].identity.name): value
            for name in self.extractors
            for kind, value in self._score(name, features).items()
        }

    def numbers(self, features: Features, drawn: Drawn) -> dict[str, Number]:
        """Return every number with its protocol."""
        values = self.score(features)
        protocols = self.protocols(len(features[f"{self.main}/{FEATURES}"]), drawn)
        return {name: Number(value, protocols[name]) for name, value in values.items()}

    def protocols(self, samples: int, drawn: Drawn) -> dict[str, Protocol]:
        """Return the protocol of every number that `numbers` would measure of so many images."""
        return {
            metrics.number_name(kind, self.references[name].identity.name): self._protocol(name, kind, samples, drawn)
            for name, extractor in self.extractors.items()
            for kind in metrics.kinds(extractor.features_list)
        }

    def nearest(self, features: Features, k: int) -> Nearest:
        """Return the k nearest training images, as the main extractor sees them."""
        reference = self.references[self.main]
        return nearest_images(features[f"{self.main}/{FEATURES}"], reference.features, reference.rows, k)

    def _score(self, name: ExtractorName, features: Features) -> dict[str, float]:
        layers = {key.split("/")[1]: values for key, values in features.items() if key.split("/")[0] == name}
        return metrics.score(layers, self.references[name].reference, self.kid_subset_size)

    def _protocol(self, name: ExtractorName, kind: str, samples: int, drawn: Drawn) -> Protocol:
        reference = self.references[name]
        identity = reference.identity
        return Protocol(
            extractor=identity.name,
            weights=identity.weights,
            input_size=identity.input_size,
            preprocessing=identity.preprocessing,
            samples=samples,
            reference=reference.description,
            reference_images=reference.images,
            reference_digest=reference.source_digest,
            settings=metrics.settings(kind, samples, reference.compared_images, self.kid_subset_size),
            **vars(drawn),
        )


def head(features: Features, count: int) -> dict[str, Tensor]:
    """Return the features of the first `count` images: numbers of different sample counts do not compare."""
    return {name: values[:count] for name, values in features.items()}
