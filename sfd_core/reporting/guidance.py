"""The figure of a guidance curve: the leading distance over the scale, one line an interval and number of evaluations."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sfd_core.reporting import text
from sfd_core.reporting.figures import DPI, INK, MUTED, RULE
from sfd_core.reporting.palette import line_styles
from sfd_core.reporting.text import number_name


def write_guidance_figure(table: pd.DataFrame, path: Path) -> None:
    """Draw the table of `guidance_curve.run_curve` as a PNG file."""
    guidance_figure(table).savefig(path, dpi=DPI, facecolor="white", format="png", metadata={"Software": None})


def guidance_figure(table: pd.DataFrame) -> Figure:
    """Draw the first distance of the table over the scale; the lowest point of all is marked and named."""
    named = [name for name in map(number_name, map(str, table.columns)) if name is not None]
    number = next(name for name in named if name.kind == "fd")
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    lines = list(table.groupby(["interval_from", "interval_to", "evaluations"], sort=True))
    for ((low, high, evaluations), points), style in zip(lines, line_styles(len(lines)), strict=True):
        # at scale 1 guidance does nothing, so that point belongs to every interval
        unguided = table[(table["scale"] == 1) & (table["evaluations"] == evaluations)]
        ordered = pd.concat([unguided, points]).drop_duplicates("scale").sort_values("scale")
        label = f"{evaluations:.0f} evaluations, guided in [{low:g}, {high:g}]"
        axes.plot(
            ordered["scale"],
            ordered[number.name],
            color=style.light,
            marker=style.matplotlib_marker,
            linestyle=style.matplotlib_dash,
            linewidth=2,
            label=label,
        )
    best = table.iloc[int(table[number.name].to_numpy().argmin())]
    axes.annotate(
        f"{text.number(float(best[number.name]))} at {best['scale']:g}",
        (float(best["scale"]), float(best[number.name])),
        xytext=(0, -16),
        textcoords="offset points",
        ha="center",
        color=INK,
        fontweight="bold",
    )
    axes.set(xlabel="guidance scale", ylabel=f"{number.title}, {text.extractor_title(number.extractor)}")
    axes.set_title(f"{table['samples'].iloc[0]:,} samples, {table['sampler'].iloc[0]}", loc="left", fontsize=11, color=INK)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.grid(color=RULE, linewidth=0.6)
    axes.tick_params(which="both", colors=MUTED, length=0)
    axes.legend(frameon=False, fontsize=9, labelcolor=MUTED)
    return figure
