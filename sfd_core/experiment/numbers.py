"""Names of measured numbers: what each measures, and how a person says it."""

from collections.abc import Iterable
from dataclasses import dataclass

SHAPES_RESULTS = True
KINDS = {
    "fd": "Fréchet distance",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "sfid": "sFID",
    "is": "Inception score",
}
"""What a number measures, in the order of the result table."""
HIGHER_IS_BETTER = frozenset({"precision", "recall", "is"})
EXTRACTORS = {
    "inception": "Inception v3",
    "dinov2": "DINOv2",
    "efficientnet_lite2": "EfficientNet-Lite2",
    "efficientnet_lite0": "EfficientNet-Lite0",
}


@dataclass(frozen=True)
class NumberName:
    """What the name of a number says: `fd_dinov2` is kind `fd` of extractor `dinov2`."""

    name: str
    kind: str
    extractor: str

    @property
    def title(self) -> str:
        """The name in words, without its extractor; only Inception's distance is called FID."""
        return "FID" if self.name == "fid" else KINDS[self.kind]

    @property
    def words(self) -> str:
        """The name in words, with its extractor."""
        return f"{self.title}, {extractor_title(self.extractor)}"

    @property
    def higher_is_better(self) -> bool:
        """Whether larger is better."""
        return self.kind in HIGHER_IS_BETTER


def number_name(name: str) -> NumberName | None:
    """Split the name of a number, or return None if it is not one."""
    if name in {"fid", "sfid", "is"}:
        return NumberName(name, "fd" if name == "fid" else name, "inception")
    kind, _, extractor = name.partition("_")
    return NumberName(name, kind, extractor) if kind in KINDS and extractor else None


def frechet_distances(names: Iterable[object]) -> list[NumberName]:
    """Return the Fréchet distances among the names of numbers."""
    return [found for name in names if (found := number_name(str(name))) is not None and found.kind == "fd"]


def extractor_title(extractor: str) -> str:
    """Return the extractor's name in words."""
    return EXTRACTORS.get(extractor, extractor)
