"""Pictures for the README, drawn from the outputs: convergence, sample grid, film strip of a denoising run, phases."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter
from PIL import Image
from scipy.optimize import isotonic_regression

from sfd_core.diffusion.schedule import Schedule
from sfd_core.experiment.params import Params
from sfd_core.reporting import published_numbers, text
from sfd_core.reporting.charts import INK, MUTED, line_look, quiet, save_figure
from sfd_core.reporting.palette import PHASE_COLOURS, VariantStyle
from sfd_core.reporting.phases import bands, leading, phases_svg, training_shares
from sfd_core.reporting.pictures import Pixels, sheet
from sfd_core.reporting.sources import Outputs, VariantOutputs, count_added, reference_title
from sfd_core.reporting.study_figures import guided_figure, offset_figure
from sfd_core.reporting.tables import primary_number

STRIP_FRAMES = 11
STRIP_SAMPLES = 2
STRIP_TILE = 128
OFFSETS_OF_SEEDS = "offsets_seeds"
"""Name of the figure of the committed table of offsets."""
CROWDED = 300
"""An axis that spans more than this factor has room for powers of ten only."""


def write_figures(params: Params, outputs: Outputs, styles: dict[str, VariantStyle], folder: Path) -> None:
    """Write convergence.png and, where there are data, phases.svg, {offsets,offsets_seeds,guidance,samples,denoising}.png."""
    save_figure(convergence_figure(params, outputs, styles), folder / "convergence.png")
    if shown := leading(outputs.variants.values()):
        diagram = phases_svg(Schedule.of(shown.params, shown.sampler), training_shares(shown), background="#ffffff")
        (folder / "phases.svg").write_text(diagram, encoding="utf-8")
    beside_published = partial(offset_figure, published=published_numbers.offset_curve())
    stored = outputs.studies.get("offsets", pd.DataFrame())
    curves = {"offsets": outputs.points("offsets"), "guidance": outputs.points("guidance"), OFFSETS_OF_SEEDS: stored}
    for name, points in curves.items():
        if len(points):
            draw = guided_figure if name == "guidance" else beside_published
            save_figure(draw(points), folder / f"{name}.png")
    if any(variant.grids is not None for variant in outputs.variants.values()):
        save_figure(samples_figure(outputs, styles, params.report.grid_images), folder / "samples.png")
    runs = (variant for variant in outputs.variants.values() if variant.trajectory and variant.trajectory.semantics is not None)
    if run := leading(runs):
        save_figure(denoising_figure(run), folder / "denoising.png")


def convergence_figure(params: Params, outputs: Outputs, styles: dict[str, VariantStyle]) -> Figure:
    """Draw the leading distance of every variant against images seen, with floor, ceiling and oracle, on logarithmic axes."""
    number = primary_number(outputs, params.features.encoder)
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    ends: list[tuple[float, str, str]] = []
    for name, variant in outputs.variants.items():
        if number.name not in variant.curve:
            continue
        x, y = variant.curve["images_seen"].to_numpy(float), variant.curve[number.name].to_numpy(float)
        seen = (x > 0) & (y > 0)
        style = styles[name]
        axes.plot(x[seen], y[seen], **line_look(style))
        ends.append((float(y[seen][-1]), f"{name}  {text.number(y[seen][-1])}", style.light))
    classes, samples = len(outputs.classes), params.evaluate.snapshot_samples
    otherwise = any(published_numbers.sampled_otherwise(variant.sampler) for variant in outputs.variants.values())
    if number.name == published_numbers.NUMBER and not otherwise and published_numbers.comparable(params, classes, samples):
        for model, points in published_numbers.curves().items():
            axes.plot(points["images_seen"], points["fid"], color=MUTED, linewidth=1, linestyle="dashed")
            ends.append((float(points["fid"].iloc[-1]), f"published: {model}  {points['fid'].iloc[-1]:g}", MUTED))
    references = [
        (count_added(reference_title(name), numbers, samples), numbers)
        for name, numbers in outputs.snapshot_references.items()
        if not name.startswith("train_subset")
    ]
    references += [(f"oracle ({name})", variant.oracle) for name, variant in outputs.variants.items()]
    for title, value in [(title, numbers[number.name].value) for title, numbers in references if number.name in numbers]:
        axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        ends.append((value, f"{title}  {text.number(value)}", MUTED))
    axes.set(xscale="log", yscale="log", xlabel="training images seen", ylabel=number.words)
    axes.set_title(params.report.title, loc="left", fontsize=12, fontweight="bold", color=INK, parse_math=False)
    _label_ends(axes, ends)
    _label_ticks(axes)
    quiet(axes)
    return figure


def samples_figure(outputs: Outputs, styles: dict[str, VariantStyle], count: int) -> Figure:
    """Draw the samples of the last snapshot: one row per variant, the same seeds in each column."""
    rows = [(variant.name, variant.grids) for variant in outputs.variants.values() if variant.grids is not None]
    figure = Figure(figsize=(10, 0.72 * len(rows) + 0.1), layout="constrained")
    for axes, (name, grids) in zip(np.ravel(figure.subplots(len(rows), 1, squeeze=False)), rows, strict=True):
        axes.imshow(sheet(grids.images[-1:, :count]), interpolation="lanczos")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", color=styles[name].light, fontweight="bold")
    return figure


def denoising_figure(variant: VariantOutputs) -> Figure:
    """Draw a film strip of one denoising run: semantic latent above texture, frames over global time, framed by phase.

    A latent that does not change in a phase is faded.
    """
    run, schedule = variant.trajectory, Schedule.of(variant.params, variant.sampler)
    if run is None or run.semantics is None:
        raise ValueError(f"variant {variant.name} has no denoising run with semantics")
    frames = [int(np.abs(run.u - time).argmin()) for time in np.linspace(0, schedule.end, STRIP_FRAMES)]
    samples = min(STRIP_SAMPLES, run.textures.shape[1])
    pitch = STRIP_TILE + 8
    canvas = np.full((2 * samples * pitch, STRIP_FRAMES * pitch, 3), 255, np.uint8)
    figure = Figure(figsize=(11, 11 * (2 * samples + 0.65) / (STRIP_FRAMES + 0.5)), layout="constrained")
    axes = figure.add_subplot()
    names, before = bands(schedule), None
    for column, frame in enumerate(frames):
        band = next(band for band in names if run.u[frame] < band.stop or band is names[-1])
        phase = band.phase
        colour = PHASE_COLOURS[phase.value]
        for row in range(2 * samples):
            source, acts = ((run.semantics, phase.semantic_acts), (run.textures, phase.texture_acts))[row % 2]
            picture = _tile(source[frame, row // 2], smooth=row % 2 == 1)
            _place(canvas[row * pitch :, column * pitch :], picture if acts else 128 + picture // 2, colour)
        title = "\n".join(band.name.split()) + "\n" if band != before else ""
        before = band
        axes.text(column * pitch, -8, f"{title}u = {run.u[frame]:.2f}", fontsize=8.5, color=colour, va="bottom")
    axes.imshow(canvas, interpolation="none")
    axes.set_yticks([(row + 0.5) * pitch for row in range(2 * samples)], ["semantic", "texture"] * samples)
    axes.set_xticks([])
    axes.tick_params(length=0, labelcolor=MUTED, labelsize=8.5)
    axes.spines[:].set_visible(False)
    return figure


def _place(corner: Pixels, picture: Pixels, colour: str) -> None:
    """Put a picture with a frame of 2 pixels into the upper left corner of a canvas."""
    corner[: STRIP_TILE + 4, : STRIP_TILE + 4] = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    corner[2 : STRIP_TILE + 2, 2 : STRIP_TILE + 2] = picture


def _tile(picture: Pixels, smooth: bool) -> Pixels:
    image = Image.fromarray(picture.transpose(1, 2, 0))
    return np.asarray(image.resize((STRIP_TILE, STRIP_TILE), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST))


def _label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Write labels right of the axes at their values, pushed apart where they would overlap."""
    low, high = np.log(axes.get_ylim())
    places = [float((np.log(value) - low) / (high - low)) for value, _, _ in ends]
    for at, (_, words, colour) in zip(spread_apart(places, 0.054), ends, strict=True):
        weight = "normal" if colour == MUTED else "bold"
        axes.text(1.015, at, words, transform=axes.transAxes, color=colour, va="center", fontsize=9.5, fontweight=weight)


def spread_apart(places: list[float], gap: float) -> list[float]:
    """Move places as little as possible (least squares) until neighbours are at least `gap` away; order is kept."""
    order = np.argsort(places, kind="stable")
    ranks = gap * np.arange(len(places))
    moved = np.empty(len(places))
    moved[order] = isotonic_regression(np.asarray(places)[order] - ranks).x + ranks
    return [float(place) for place in moved]


def _label_ticks(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        wide = high > CROWDED * low
        axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        axis.set_major_formatter(EngFormatter() if wide else FuncFormatter(_with_thousands))
        axis.set_minor_formatter(NullFormatter())
        axis.label.set_color(MUTED)


def _with_thousands(value: float, _: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
