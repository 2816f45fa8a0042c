"""A number and how it was measured: without its protocol a distance means nothing."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Drawn:
    """How the judged images came about."""

    images: str
    """What they are, such as `samples` or `held-out images and mirror images`."""
    labels: str
    """How their classes were chosen, such as `class-balanced`."""
    seed: int
    sampler: str = "none"
    evaluations: int | None = None
    """Network evaluations an image; None for images that no sampler drew."""
    guidance: str = "none"
    recipe: Mapping[str, Any] | None = None
    """All that is needed to draw them again: artifact, hashes of weights, every value of the sampler; see `measurement`."""


@dataclass(frozen=True)
class Protocol:
    """Everything that a number depends on beside the model."""

    extractor: str
    weights: str
    """sha256 of the extractor's weights."""
    input_size: int
    """Side in pixels that the extractor sees."""
    preprocessing: str
    samples: int
    """Judged images."""
    reference: str
    reference_images: int
    reference_digest: str
    """Hash of the images' shard, or of the ADM reference file."""
    settings: str
    """Of the measure: neighbours, subsets, seeds."""
    images: str
    labels: str
    seed: int
    sampler: str
    evaluations: int | None
    guidance: str
    recipe: Mapping[str, Any] | None


@dataclass(frozen=True)
class Number:
    """A measured value with its protocol."""

    value: float
    protocol: Protocol

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return asdict(self)
