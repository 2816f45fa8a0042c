"""The figure of the solvers: the leading distance and the error over network evaluations, one line a solver."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from sfd_core.reporting import text
from sfd_core.reporting.figures import DPI, INK, MUTED, RULE
from sfd_core.reporting.palette import line_styles
from sfd_core.reporting.text import number_name


def write_solver_figure(table: pd.DataFrame, path: Path) -> None:
    """Draw the table of `solver_curve.run_solvers` as a PNG file."""
    solver_figure(table).savefig(path, dpi=DPI, facecolor="white", format="png", metadata={"Software": None})


def solver_figure(table: pd.DataFrame) -> Figure:
    """Draw the first distance of the table and the error over evaluations; dotted is the target, the table's first row."""
    named = [name for name in map(number_name, map(str, table.columns)) if name is not None]
    number = next(name for name in named if name.kind == "fd")
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, table, number.name, f"{number.title}, {text.extractor_title(number.extractor)}")
    _draw(right, table, "error", "error of normalised latents (root mean square)")
    target = table.iloc[0]
    left.set_title(f"{target['samples']:,} samples, guidance {target['guidance']}", loc="left", fontsize=11, color=INK)
    right.set_title("to the exact solution from the same noise", loc="left", fontsize=11, color=INK)
    left.legend(frameon=False, fontsize=9, labelcolor=MUTED)
    return figure


def _draw(axes: Axes, table: pd.DataFrame, column: str, label: str) -> None:
    lines = list(table.groupby("solver", sort=False))
    for (solver, points), style in zip(lines, line_styles(len(lines)), strict=True):
        ordered = points.sort_values("evaluations")
        (line,) = axes.plot(ordered["evaluations"], ordered[column], color=style.light, linewidth=2, label=str(solver))
        line.set(marker=style.matplotlib_marker, linestyle=style.matplotlib_dash)
    target = table.iloc[0]
    height = float(target[column])
    told = f"{target['solver']} with {target['evaluations']} evaluations: {text.number(height)}"
    axes.axhline(height, color=MUTED, linewidth=1, linestyle=(0, (1, 2)), label=told)
    budgets = _spaced(sorted(set(table["evaluations"]), reverse=True))
    axes.set(xscale="log", xlabel="network evaluations an image", yscale="log", ylabel=label)
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = table[column].min(), table[column].max()
    ticks = [low * (high / low) ** (index / 4) for index in range(5)]
    axes.set_yticks(ticks, [text.number(float(tick)) for tick in ticks])
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.grid(color=RULE, linewidth=0.6)
    axes.tick_params(which="both", colors=MUTED, length=0)


def _spaced(budgets: list[int]) -> list[int]:
    """Leave out what lies too close below a larger budget to be written beside it."""
    kept: list[int] = []
    for budget in budgets:
        if not kept or budget < 0.9 * kept[-1]:
            kept.append(budget)
    return kept
