"""The figure of a sweep: the leading distance over what was varied, with the spread over seeds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfd_core.experiment.sizes import MODEL_SIZES
from sfd_core.host.errors import DataError
from sfd_core.reporting import text
from sfd_core.reporting.figures import DPI, INK, MUTED, RULE
from sfd_core.reporting.palette import VariantStyle, line_styles
from sfd_core.reporting.text import number_name


def write_sweep_figure(table: pd.DataFrame, over: Sequence[str], path: Path) -> None:
    """Draw a sweep as a PNG file; see `sweep_figure`."""
    sweep_figure(table, over).savefig(path, dpi=DPI, facecolor="white", format="png", metadata={"Software": None})


def sweep_figure(table: pd.DataFrame, over: Sequence[str]) -> Figure:
    """Draw the first distance of the table over the first of the swept columns `over`; one line a variant and other value.

    `table` has one row a point with columns `variant`, `seed`, the swept ones and numbers. Points are means over seeds, bars
    their standard deviation (n - 1) and small dots the seeds themselves. Raises `DataError` for a table without a distance.
    """
    number = next((name for name in map(number_name, map(str, table.columns)) if name is not None and name.kind == "fd"), None)
    if number is None or table.empty:
        raise DataError("the table of the sweep has no distance, so there is nothing to draw; no point has ended well")
    x = over[0] if over else "seed"
    ticks = _ticks(table[x])
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    by = ["variant", *(key for key in over[1:] if key != x)]
    lines = list(table.groupby(by, sort=False))
    for (names, points), style in zip(lines, line_styles(len(lines)), strict=True):
        words = [str(names[0]), *(f"{key} {value}" for key, value in zip(by[1:], names[1:], strict=True))]
        _line(axes, [ticks[value] for value in points[x]], points[number.name], style, ", ".join(words))
    best = table.iloc[int(table[number.name].to_numpy().argmin())]
    axes.annotate(
        text.number(float(best[number.name])),
        (ticks[best[x]], float(best[number.name])),
        xytext=(0, -16),
        textcoords="offset points",
        ha="center",
        color=INK,
        fontweight="bold",
    )
    if any(isinstance(value, str) for value in ticks):
        axes.set_xticks(list(ticks.values()), [str(value) for value in ticks])
    axes.set(xlabel=x, ylabel=f"{number.title}, {text.extractor_title(number.extractor)}")
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.grid(color=RULE, linewidth=0.6)
    axes.tick_params(which="both", colors=MUTED, length=0)
    axes.legend(frameon=False, fontsize=9, labelcolor=MUTED)
    return figure


def _line(axes: Axes, places: Sequence[float], values: pd.Series, style: VariantStyle, label: str) -> None:
    by_place = pd.DataFrame({"place": list(places), "value": values.to_numpy()}).groupby("place")["value"]
    means, spreads = by_place.mean(), by_place.std(ddof=1).fillna(0.0)
    axes.errorbar(
        means.index.to_numpy(dtype=np.float64),
        means.to_numpy(),
        yerr=spreads.to_numpy() if (by_place.count() > 1).any() else None,
        color=style.light,
        marker=style.matplotlib_marker,
        linestyle=style.matplotlib_dash,
        linewidth=2,
        capsize=4,
        label=label,
    )
    axes.plot(list(places), values.to_numpy(), linestyle="none", marker=".", markersize=4, color=style.light, alpha=0.6)


def _ticks(values: pd.Series) -> dict[object, float]:
    """Return each value's place on the axis: itself, or for names their order, sizes by size."""
    distinct = list(dict.fromkeys(values))
    if not any(isinstance(value, str) for value in distinct):
        return {value: float(value) for value in sorted(distinct)}
    sizes = list(MODEL_SIZES)
    ordered = sorted(distinct, key=lambda name: sizes.index(name) if name in sizes else len(sizes))
    return {value: float(place) for place, value in enumerate(ordered)}
