"""Numbers and names as a person reads them."""

from collections.abc import Iterable
from dataclasses import dataclass

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


def number(value: float) -> str:
    """Write a measured number with three to four significant digits."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if abs(value) >= 0.001 else f"{value:.1e}"


def count(value: float) -> str:
    """Write a count with thousands separated."""
    return f"{value:,.0f}"


def flops(value: float) -> str:
    """Write floating-point operations with an SI prefix."""
    for power, prefix in ((21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {prefix}FLOP"
    return f"{value:.3g} FLOP"


def duration(seconds: float) -> str:
    """Write seconds as a person would say them."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    if seconds < 5400:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds / 3600:.3g} h"
