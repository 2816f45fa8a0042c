"""What the page's scripts draw: curves, reference lines, sprite sheets and denoising runs, as one JSON object."""

import math
from typing import Any

import numpy as np
import pandas as pd
import torch

from sfd_core.diffusion.schedule import Schedule
from sfd_core.experiment.numbers import KINDS, number_name
from sfd_core.experiment.params import Params
from sfd_core.reporting import published_numbers, text
from sfd_core.reporting.palette import VariantStyle
from sfd_core.reporting.phases import bands
from sfd_core.reporting.pictures import data_uri, sheet, thinned, thumbnails
from sfd_core.reporting.sources import Grids, Outputs, Trajectory, VariantOutputs, class_names, count_added

HISTORY_POINTS = 160
"""Training curves are averaged down to this many points."""
NO_TERMS = frozenset({"step", "images_seen", "seconds"})


def build_payload(params: Params, outputs: Outputs, styles: dict[str, VariantStyle], grid_images: int) -> dict[str, Any]:
    """Collect everything the scripts of the page need; every value is JSON without NaN."""
    variants = outputs.variants.values()
    return {
        "variants": [{"name": v.name, "marker": styles[v.name].marker, "dash": styles[v.name].dash} for v in variants],
        "measures": _measures(outputs),
        "curves": {v.name: _curve(v.curve) for v in variants},
        **_long_training(outputs),
        "lines": _lines(outputs, next(iter(variants)).curve),
        "published": _published(params, outputs),
        "training": {
            "denoisers": {v.name: _history(v.history) for v in variants if v.history is not None and len(v.history)},
            **{stage: {stage: _history(table)} for stage, table in outputs.vae_histories.items() if len(table)},
        },
        "grids": {v.name: _grid(v, v.grids, grid_images) for v in variants if v.grids is not None},
        "trajectories": {v.name: _trajectory(v, v.trajectory, outputs.classes) for v in variants if v.trajectory is not None},
    }


def _curve(curve: pd.DataFrame) -> dict[str, Any]:
    names = [str(column) for column in curve.columns if number_name(str(column))]
    return {
        "steps": _plain(curve["step"]),
        **{axis: _plain(curve[axis]) for axis in ("images_seen", "seconds", "flops")},
        "numbers": {name: _plain(curve[name]) for name in names},
    }


def _long_training(outputs: Outputs) -> dict[str, Any]:
    if "long" not in outputs.studies:
        return {"long": {}, "long_lines": {}}
    table = outputs.studies["long"]
    curves = {str(name): _curve(curve) for name, curve in table.groupby("variant", sort=False)}
    return {"long": curves, "long_lines": _lines(outputs, table)}


def _measures(outputs: Outputs) -> dict[str, dict[str, str]]:
    """Kind -> extractor -> column, for what the curves hold."""
    columns = dict.fromkeys(str(column) for variant in outputs.variants.values() for column in variant.curve.columns)
    names = [name for name in map(number_name, columns) if name is not None]
    return {
        kind: {name.extractor: name.name for name in names if name.kind == kind}
        for kind in KINDS
        if any(name.kind == kind for name in names)
    }


def _lines(outputs: Outputs, curves: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Return the lines beside `curves` by number, with how many images they are of where that is not what these are of."""
    samples = int(curves["samples"].iloc[0])
    named = [(kind, outputs.snapshot_references[kind]) for kind in ("floor", "ceiling") if kind in outputs.snapshot_references]
    named += [(f"oracle {name}", variant.oracle) for name, variant in outputs.variants.items()]
    titled = [(count_added(title, numbers, samples), numbers) for title, numbers in named]
    return {
        number: [{"name": title, "value": numbers[number].value} for title, numbers in titled if number in numbers]
        for number in outputs.number_names()
    }


def _published(params: Params, outputs: Outputs) -> dict[str, Any]:
    """Published curves by number, and one's own and the published offsets; each only where its samples would compare."""
    classes, asked = len(outputs.classes), params.evaluate
    curves = _published_curves() if published_numbers.comparable(params, classes, asked.snapshot_samples) else {}
    return curves | (_published_offsets(outputs) if published_numbers.comparable(params, classes, asked.final_samples) else {})


def _published_curves() -> dict[str, Any]:
    curves = {
        f"published: {model}": {
            "steps": _plain(points["step"]),
            "images_seen": _plain(points["images_seen"]),
            "y": _plain(points["fid"]),
        }
        for model, points in published_numbers.curves().items()
    }
    return {"curves": {published_numbers.NUMBER: curves}}


def _published_offsets(outputs: Outputs) -> dict[str, Any]:
    offsets = published_numbers.offset_curve()
    own = {
        name: v
        for name, v in outputs.variants.items()
        if v.params.semantic != "none" and v.params.path is None and published_numbers.NUMBER in v.numbers
    }
    return {
        "offsets": {"x": _plain(offsets["delta_t"]), "y": _plain(offsets["fid"])},
        "own_offsets": {
            name: {"x": [v.params.delta_t], "y": _plain([v.numbers[published_numbers.NUMBER].value])} for name, v in own.items()
        },
    }


def _history(table: pd.DataFrame) -> dict[str, Any]:
    thin = table.groupby(np.arange(len(table)) * min(HISTORY_POINTS, len(table)) // len(table)).mean(numeric_only=True)
    images = thin["images_seen"] if "images_seen" in thin else thin["step"]
    return {"images_seen": _plain(images), "terms": {str(name): _plain(thin[name]) for name in thin if name not in NO_TERMS}}


def _grid(variant: VariantOutputs, grids: Grids, count: int) -> dict[str, Any]:
    shown = thumbnails(grids.images[:, :count])
    at_step = variant.curve.set_index("step")
    first = next(iter(name for name in variant.numbers if name in at_step), None)
    notes = [text.number(float(at_step.loc[step, first])) if first and step in at_step.index else "" for step in grids.steps]
    return {
        "sheets": [data_uri(sheet(images[None]), "webp") for images in shown],
        "images_seen": at_step.loc[grids.steps, "images_seen"].tolist(),
        "notes": notes,
    }


def _trajectory(variant: VariantOutputs, run: Trajectory, classes: list[str]) -> dict[str, Any]:
    schedule = Schedule.of(variant.params, variant.sampler)
    textures = thumbnails(run.textures)
    frames = thinned(len(run.u), textures.shape[-1])
    u = run.u[frames]
    local = schedule.local_times(torch.from_numpy(u))
    composite = variant.params.semantic != "none"
    phases = bands(schedule, composite)
    return {
        "u": _plain(u),
        "t_tex": _plain(local.t_tex.numpy()),
        "t_sem": _plain(local.t_sem.numpy()) if composite else None,
        "phase": np.searchsorted([band.stop for band in phases[:-1]], u, side="right").tolist(),
        "phases": [
            {
                "name": band.name,
                "says": band.says,
                "colour": f"var(--phase-{band.phase.value})",
                "from": band.start,
                "to": band.stop,
                "texture": band.phase.texture_acts,
                "semantic": band.phase.semantic_acts,
            }
            for band in phases
        ],
        "lanes": {
            "texture": _lane(schedule, semantic=False),
            "semantic": _lane(schedule, semantic=True) if composite else None,
        },
        "end": schedule.end,
        "count": textures.shape[1],
        "size": textures.shape[-1],
        "grid": run.semantics.shape[-1] if run.semantics is not None else 0,
        "textures": data_uri(sheet(textures[frames]), "webp"),
        "semantics": data_uri(sheet(run.semantics[frames]), "png") if run.semantics is not None else None,
        "labels": [] if run.labels is None else class_names(run.labels, classes),
    }


def _lane(schedule: Schedule, semantic: bool) -> dict[str, float]:
    start, stop = schedule.interval(semantic)
    return {"from": start, "to": stop}


def _plain(values: Any) -> list[float | None]:
    """Return finite numbers with six significant digits; what is not finite becomes null."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in (float(item) for item in values)]
