"""What all drawn line charts share: colours, quiet axes, one look a line, the lowest point marked."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfd_core.experiment.numbers import NumberName, frechet_distances
from sfd_core.host.errors import DataError
from sfd_core.reporting.palette import VariantStyle

INK, MUTED, RULE = "#15181c", "#59626c", "#dfe1e0"
DPI = 160


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; the same figure gives the same bytes."""
    figure.savefig(path, dpi=DPI, facecolor="white", format="png", metadata={"Software": None})


def leading_distance(table: pd.DataFrame) -> NumberName:
    """Return the first Fréchet distance among the columns of a table. Raises `DataError` if it has none, or no row."""
    numbers = frechet_distances(table.columns)
    if not numbers or table.empty:
        raise DataError("the table has no distance, so there is nothing to draw; no point of it has ended well")
    return numbers[0]


def line_look(style: VariantStyle) -> dict[str, Any]:
    """Return Matplotlib's keywords for a line of this style."""
    look = {"color": style.light, "marker": style.matplotlib_marker, "linestyle": style.matplotlib_dash}
    return look | {"linewidth": 2}


def mark_lowest(axes: Axes, x: float, y: float, words: str) -> None:
    """Write `words` below the lowest point."""
    place: dict[str, Any] = {"xytext": (0, -16), "textcoords": "offset points", "ha": "center"}
    axes.annotate(words, (x, y), color=INK, fontweight="bold", **place)
    axes.margins(y=0.12)


def quiet(axes: Axes) -> None:
    """Leave of the frame only thin lines and a grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.grid(color=RULE, linewidth=0.6)
    axes.tick_params(which="both", colors=MUTED, length=0)


def add_legend(axes: Axes) -> None:
    """Name the lines."""
    axes.legend(frameon=False, fontsize=9, labelcolor=MUTED)
