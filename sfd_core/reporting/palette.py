"""Fixed looks of variants and phases, distinguishable without colour vision: every variant also has a marker and a dash."""

from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal

PHASE_COLOURS = {"semantic": "#7b5ea7", "both": "#21868c", "texture": "#c2871b"}
"""Light-theme colours of the three phases, the same as in `page/style.css`."""


@dataclass(frozen=True)
class VariantStyle:
    """How one variant looks in every chart, table and figure."""

    light: str
    """Colour on a light background (contrast at least 3:1)."""
    dark: str
    """Colour on a dark background."""
    marker: str
    """Name of a marker shape in `page/chart.js`."""
    dash: str
    """SVG dash pattern; empty draws a solid line."""

    @property
    def matplotlib_marker(self) -> str:
        """Matplotlib's letter of the marker."""
        return {"circle": "o", "square": "s", "diamond": "D", "triangle": "^"}[self.marker]

    @property
    def matplotlib_dash(self) -> Literal["solid"] | tuple[float, tuple[float, ...]]:
        """Matplotlib's description of the dash pattern, in units of the line width."""
        return (0, tuple(float(part) / 2 for part in self.dash.split())) if self.dash else "solid"


_FIXED = {
    "dit": VariantStyle("#9c4f86", "#d98fc4", "square", "2 3"),
    "lightningdit": VariantStyle("#8a7000", "#e0c23c", "triangle", "8 3 2 3"),
    "sync": VariantStyle("#0067a8", "#62b6ee", "diamond", "7 4"),
    "sfd": VariantStyle("#cf4a00", "#ff8a47", "circle", ""),
    "redi": VariantStyle("#00795a", "#35c79b", "diamond", "4 3"),
    "repa": VariantStyle("#545c66", "#aab4c0", "triangle", "5 3"),
}
_OTHERS = (
    VariantStyle("#6a51a3", "#b39ddb", "circle", "6 3"),
    VariantStyle("#80461b", "#cf9a6b", "square", "6 3"),
    VariantStyle("#1f7a8c", "#6fcbdc", "diamond", "3 3"),
    VariantStyle("#a0234a", "#f08aa8", "triangle", "3 3"),
)


def line_styles(count: int) -> list[VariantStyle]:
    """Return the looks of `count` lines that are no variants."""
    return list(islice(cycle([*_FIXED.values(), *_OTHERS]), count))


def variant_styles(names: list[str]) -> dict[str, VariantStyle]:
    """Return the style of every variant; the six of `params.yaml` always look alike, others take spare styles in turn."""
    spare = [name for name in names if name not in _FIXED]
    others = {name: _OTHERS[index % len(_OTHERS)] for index, name in enumerate(spare)}
    return {name: _FIXED.get(name) or others[name] for name in names}
