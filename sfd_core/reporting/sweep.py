"""The figure of a sweep: the leading distance over what was varied, with the spread over seeds."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfd_core.experiment.sizes import MODEL_SIZES
from sfd_core.reporting import text
from sfd_core.reporting.charts import add_legend, leading_distance, line_look, mark_lowest, quiet
from sfd_core.reporting.palette import VariantStyle, line_styles

NULL = "null"
"""How a swept null, which is empty in a table, is written."""


def sweep_figure(table: pd.DataFrame, over: Sequence[str]) -> Figure:
    """Draw the first distance of the table over the first of the swept columns `over`; one line a variant and other value.

    `table` has one row a point with columns `variant`, `seed`, the swept ones and numbers. Points are means over seeds, bars
    their standard deviation (n - 1) and small dots the seeds themselves; the lowest mean is marked. Raises `DataError` for a
    table without a distance.
    """
    number = leading_distance(table)
    swept = list(over)
    table = table.assign(**table[swept].astype(object).where(table[swept].notna(), NULL))
    x = over[0] if over else "seed"
    ticks = _ticks(table[x])
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    by = ["variant", *(key for key in over[1:] if key != x)]
    lines = list(table.groupby(by, sort=False))
    lowest = []
    for (names, points), style in zip(lines, line_styles(len(lines)), strict=True):
        words = [str(names[0]), *(f"{key} {value}" for key, value in zip(by[1:], names[1:], strict=True))]
        means = _line(axes, [ticks[value] for value in points[x]], points[number.name], style, ", ".join(words))
        lowest.append((float(means.min()), cast(float, means.idxmin())))
    mean, place = min(lowest)
    mark_lowest(axes, place, mean, text.number(mean))
    if any(isinstance(value, str) for value in ticks):
        axes.set_xticks(list(ticks.values()), [str(value) for value in ticks])
    axes.set(xlabel=x, ylabel=number.words)
    quiet(axes)
    add_legend(axes)
    return figure


def _line(axes: Axes, places: Sequence[float], values: pd.Series, style: VariantStyle, label: str) -> pd.Series:
    """Draw one line and return its means by place."""
    by_place = pd.DataFrame({"place": list(places), "value": values.to_numpy()}).groupby("place")["value"]
    means, spreads = by_place.mean(), by_place.std(ddof=1).fillna(0.0)
    axes.errorbar(
        means.index.to_numpy(dtype=np.float64),
        means.to_numpy(),
        yerr=spreads.to_numpy() if (by_place.count() > 1).any() else None,
        capsize=4,
        label=label,
        **line_look(style),
    )
    axes.plot(list(places), values.to_numpy(), linestyle="none", marker=".", markersize=4, color=style.light, alpha=0.6)
    return means


def _ticks(values: pd.Series) -> dict[object, float]:
    """Return each value's place on the axis: itself, or for names their order, sizes by size; null comes before numbers."""
    distinct = list(dict.fromkeys(values))
    numbers = sorted(value for value in distinct if not isinstance(value, str))
    if len(numbers) == len(distinct):
        return {value: float(value) for value in numbers}
    sizes, words = list(MODEL_SIZES), [value for value in distinct if isinstance(value, str)]
    ordered = sorted(words, key=lambda name: sizes.index(name) if name in sizes else len(sizes))
    return {value: float(place) for place, value in enumerate([*ordered, *numbers])}
