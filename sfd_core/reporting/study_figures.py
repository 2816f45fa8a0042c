"""The figures of the studies of one denoiser: the leading distance over guidance, orders, or solvers and evaluations."""

import json
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from sfd_core.diffusion.error_field import ErrorField
from sfd_core.reporting import text
from sfd_core.reporting.charts import INK, MUTED, add_legend, leading_distance, line_look, mark_lowest, quiet
from sfd_core.reporting.palette import line_styles


def guidance_figure(table: pd.DataFrame) -> Figure:
    """Draw the leading distance over the scale, one line an interval and number of evaluations; the lowest point is marked.

    `table` is that of `studies.guidance.run_curve`.
    """
    figure, axes, number = _axes(table, "guidance scale", f"{table['samples'].iloc[0]:,} samples, {table['sampler'].iloc[0]}")
    # dopri5 chooses its evaluations at every point, so they tell no lines apart
    chosen = table["sampler"].iloc[0].startswith("dopri5")
    lines = list(table.groupby(["interval_from", "interval_to", *([] if chosen else ["evaluations"])], sort=True))
    for ((low, high, *_), points), style in zip(lines, line_styles(len(lines)), strict=True):
        # at scale 1 guidance does nothing, so that point belongs to every interval
        unguided = table[(table["scale"] == 1) & (chosen | table["evaluations"].isin(points["evaluations"]))]
        ordered = pd.concat([unguided, points]).drop_duplicates("scale").sort_values("scale")
        counts = " to ".join(f"{count:.0f}" for count in sorted({points["evaluations"].min(), points["evaluations"].max()}))
        label = f"{counts} evaluations, guided in [{low:g}, {high:g}]"
        axes.plot(ordered["scale"], ordered[number], label=label, **line_look(style))
    _mark_best(axes, table, "scale", number)
    add_legend(axes)
    return figure


def by_training(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Split the points of offset studies by what a mean may be taken over: trainings that differ in nothing but the seed.

    `origin`, else `variant`, says so. Where these are not each measured once at every offset, they are apart: by variant, or
    without `origin` by study, as something else may differ, too.
    """
    groups: dict[str, pd.DataFrame] = {}
    origin, training = ("origin", "variant") if "origin" in table else ("variant", "study")
    for name, points in table.groupby(origin, sort=False):
        times = points.groupby(["seed", "delta_t"]).size().unstack()
        alike = bool((times == 1).all(axis=None))
        groups |= {str(name): points} if alike else {str(key): rows for key, rows in points.groupby(training, sort=False)}
    return groups


def offset_figure(table: pd.DataFrame, published: pd.DataFrame | None = None) -> Figure:
    """Draw the leading distance over the offset along which a denoiser is sampled; the lowest mean over seeds is marked.

    A line is a training, or the mean of each variant if there are several.

    `table` is that of `studies.orders.run_orders`, or several of them told apart by a column `study`. `published`
    (`delta_t`, `fid`) has an axis of its own.
    """
    groups = by_training(table) if "study" in table else {"": table}
    apart = ["variant", "seed"] if "study" in table else ["seed"]
    lines = [points for rows in groups.values() for _, points in rows.groupby(apart, sort=False)]
    trainings = "one training" if len(lines) == 1 else f"{len(lines)} trainings"
    figure, axes, number = _axes(
        table, "offset by which semantics lead texture", f"{trainings}, {table['samples'].iloc[0]:,} samples a point"
    )
    if published is not None:
        right = axes.twinx()
        right.plot(published["delta_t"], published["fid"], color=MUTED, linewidth=1, linestyle="dashed")
        right.set_ylabel("published FID, ImageNet 256, a training an offset (dashed)", color=MUTED)
        right.spines[:].set_visible(False)
        right.tick_params(colors=MUTED, length=0)
    means = {name: points.groupby("delta_t")[[number]].mean().reset_index() for name, points in groups.items()}
    seeds = [(f"seed {points['seed'].iloc[0]}", points) for points in lines]
    drawn = seeds if len(groups) == 1 else list(means.items())
    for (label, points), style in zip(drawn, line_styles(len(drawn)), strict=True):
        ordered = points.sort_values("delta_t")
        axes.plot(ordered["delta_t"], ordered[number], label=label, **line_look(style))
    if len(lines) > 1:
        if drawn is seeds:
            (mean,) = means.values()
            axes.plot(mean["delta_t"], mean[number], color=INK, linewidth=3, label="mean")
        add_legend(axes)
    _mark_best(axes, pd.concat(means.values()), "delta_t", number)
    return figure


def corner_figure(table: pd.DataFrame) -> Figure:
    """Draw the leading distance as a map over the corners of paths with two straight pieces; the lowest is marked.

    `table` is that of `studies.orders.run_orders`; the straight path fills the diagonal.
    """
    number = leading_distance(table)
    straight = table["t_tex"] == table["t_sem"]
    bent = table[~straight]
    times = sorted({*bent["t_tex"], *bent["t_sem"]}) or [0.5]
    cells = bent.pivot_table(index="t_sem", columns="t_tex", values=number.name).reindex(index=times, columns=times)
    values = cells.to_numpy(float, copy=True)
    np.fill_diagonal(values, table.loc[straight, number.name].iloc[0])
    figure = Figure(figsize=(7, 5.6), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, origin="lower", cmap="cividis")
    figure.colorbar(image, ax=axes, label=number.words)
    middle, lowest = (np.nanmin(values) + np.nanmax(values)) / 2, np.nanmin(values)
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        words: dict[str, Any] = {
            "color": "white" if value < middle else INK,
            "fontweight": "bold" if value == lowest else "normal",
        }
        axes.text(column, row, text.number(float(value)), ha="center", va="center", fontsize=9, **words)
    axes.set_xticks(range(len(times)), [f"{time:g}" for time in times])
    axes.set_yticks(range(len(times)), [f"{time:g}" for time in times])
    axes.set(xlabel="time of texture at the corner", ylabel="time of semantics at the corner")
    axes.set_title(f"one training, {table['samples'].iloc[0]:,} samples a point", loc="left", fontsize=11, color=INK)
    return figure


def error_field_figure(field: ErrorField, table: pd.DataFrame) -> Figure:
    """Draw both errors over both local times, and over them the paths of `table`, each with its leading distance.

    `table` is that of `studies.error_field.run_error_field`. Colours are logarithmic: errors differ by orders of magnitude.
    """
    number = leading_distance(table)
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    for axes, part in zip(figure.subplots(1, 2), ("texture", "semantic"), strict=True):
        errors, times = getattr(field, part).numpy(), field.times.numpy()
        mesh = axes.pcolormesh(times, times, errors.T, norm="log", cmap="cividis", shading="gouraud")
        scale = figure.colorbar(mesh, ax=axes, label=f"squared error of the {part} velocity", format="{x:g}")
        scale.ax.yaxis.set_minor_formatter("{x:g}")
        for (_, point), style in zip(table.iterrows(), line_styles(len(table)), strict=True):
            t_tex, t_sem = zip(*json.loads(point["path"]), strict=True)
            label = f"semantic weight {point['semantic_weight']:g}: {text.number(float(point[number.name]))}"
            axes.plot(t_tex, t_sem, label=label, **(line_look(style) | {"marker": None}))
        axes.set(xlabel="time of texture", ylabel="time of semantics", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9, title=number.words
    )
    return figure


def guided_figure(table: pd.DataFrame) -> Figure:
    """Draw the leading distance over the guidance scale, one line a study; the lowest point is marked.

    `table` holds the tables of several studies of guidance, told apart by a column `study`.
    """
    figure, axes, number = _axes(table, "guidance scale", f"{table['samples'].iloc[0]:,} samples a point")
    lines = list(table.groupby("study", sort=False))
    for (study, points), style in zip(lines, line_styles(len(lines)), strict=True):
        ordered = points.sort_values("scale")
        axes.plot(ordered["scale"], ordered[number], label=str(study), **line_look(style))
    _mark_best(axes, table, "scale", number)
    add_legend(axes)
    return figure


def solver_figure(table: pd.DataFrame) -> Figure:
    """Draw the leading distance and the error over evaluations, one line a solver; dotted is the target, the first row.

    `table` is that of `studies.solvers.run_solvers`.
    """
    number = leading_distance(table)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_solvers(left, table, number.name, number.words)
    _draw_solvers(right, table, "error", "error of normalised latents (root mean square)")
    target = table.iloc[0]
    left.set_title(f"{target['samples']:,} samples, guidance {target['guidance']}", loc="left", fontsize=11, color=INK)
    right.set_title("to the exact solution from the same noise", loc="left", fontsize=11, color=INK)
    add_legend(left)
    return figure


def _axes(table: pd.DataFrame, over: str, title: str) -> tuple[Figure, Axes, str]:
    """Return a figure, its axes of the leading distance over `over`, and the column of that distance."""
    number = leading_distance(table)
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=over, ylabel=number.words)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    quiet(axes)
    return figure, axes, number.name


def _mark_best(axes: Axes, table: pd.DataFrame, over: str, column: str) -> None:
    best = table.iloc[int(table[column].to_numpy().argmin())]
    lowest = float(best[column])
    mark_lowest(axes, float(best[over]), lowest, f"{text.number(lowest)} at {best[over]:g}")


def _draw_solvers(axes: Axes, table: pd.DataFrame, column: str, label: str) -> None:
    lines = list(table.groupby("solver", sort=False))
    for (solver, points), style in zip(lines, line_styles(len(lines)), strict=True):
        ordered = points.sort_values("evaluations")
        axes.plot(ordered["evaluations"], ordered[column], label=str(solver), **line_look(style))
    target = table.iloc[0]
    height = float(target[column])
    words = f"{target['solver']} with {target['evaluations']} evaluations: {text.number(height)}"
    axes.axhline(height, color=MUTED, linewidth=1, linestyle=(0, (1, 2)), label=words)
    budgets = _spaced(sorted(set(table["evaluations"]), reverse=True))
    axes.set(xscale="log", xlabel="network evaluations an image", yscale="log", ylabel=label)
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = table[column].min(), table[column].max()
    ticks = [low * (high / low) ** (index / 4) for index in range(5)]
    axes.set_yticks(ticks, [text.number(float(tick)) for tick in ticks])
    quiet(axes)


def _spaced(budgets: list[int]) -> list[int]:
    """Leave out what lies too close below a larger budget to be written beside it."""
    kept: list[int] = []
    for budget in budgets:
        if not kept or budget < 0.9 * kept[-1]:
            kept.append(budget)
    return kept
