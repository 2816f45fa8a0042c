"""Where a training should be by now: losses and distances of variants beside those of a reference, at as many images seen.

The reference is the published FID for ImageNet as in papers (`published_numbers`), else a table that `record` writes of a
finished run. A number of another protocol is not compared: other latents, another sampler or evaluator, another sample count.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sfd_core.evaluation.convergence import read_curve
from sfd_core.experiment.inputs import all_recorded_digests
from sfd_core.experiment.numbers import frechet_distances
from sfd_core.experiment.params import LATENTS, Params, VariantParams
from sfd_core.host.errors import DataError
from sfd_core.host.paths import OUTPUTS, STATE
from sfd_core.reporting import published_numbers, text
from sfd_core.reporting.progress import RUNNING, read_work
from sfd_core.reporting.protocol import PROTOCOL, protocol
from sfd_core.reporting.sources import read_table, require_json
from sfd_core.tracking.runs import is_of
from sfd_core.training.history import read_history

COLUMNS = ["variant", "step", "images_seen", "number", "samples", "value"]
HEADINGS = ("step", "number", "here", "reference", "ratio", "verdict")
LOSS_ROWS = 10
"""The loss of a step is the mean of so many rows of the training's curve before it."""
EXPECTED = 0.05
"""What is nearer to the reference is as expected; seeds and numbers read off a figure differ by some 2 %."""


@dataclass(frozen=True)
class Compared:
    """A variant beside its reference: rows as `HEADINGS`, and what was not compared or has to be known."""

    rows: list[tuple[str, ...]]
    notes: list[str]


def published_model(variant: VariantParams) -> str:
    """Return what papers call the model of a variant, whether or not a curve of it was published."""
    if variant.model == "dit":
        return f"DiT-{variant.size}/2"
    leads = variant.delta_t > 0 and variant.times.kind == "global"
    semantics = {"none": " + REPA" if variant.repa.weight > 0 else "", "vae": " + SFD" if leads else " + semantics at once"}
    return f"LightningDiT-{variant.size}/{variant.patch}{semantics.get(variant.semantic, ' + PCA')}"


def in_work(place: Path, variant: str) -> Path | None:
    """Return the resume folder of a variant's training in `place`, if it runs or nothing of it is finished."""
    works = [work for work in read_work(place) if work.stage == f"train@{variant}"]
    unfinished = [work for work in works if Path(work.where).is_relative_to(place / STATE / "resume")]
    if unfinished and (unfinished[0].state == RUNNING or not (place / OUTPUTS / "train" / variant).is_dir()):
        return Path(unfinished[0].where)
    return None


def measured(place: Path, params: Params, variant: str) -> pd.DataFrame:
    """Return the losses and distances of a variant, in work or finished in `place`; empty if there are none.

    The columns are `COLUMNS` and `PROTOCOL`. Raises `DataError` if a file is damaged.
    """
    training = in_work(place, variant)
    folder = training or place / OUTPUTS / "train" / variant
    distances = iter(()) if training else _distances(place / OUTPUTS, variant)
    points = [*_losses(folder), *distances]
    hashes = protocol(params, params.variants[variant], all_recorded_digests(place))
    return pd.DataFrame([(variant, *point) for point in points], columns=COLUMNS).assign(**hashes)


def record(place: Path, made: Mapping[str, Params]) -> pd.DataFrame:
    """Return `measured` of variants with the parameters that made them, as `compare` takes it.

    Raises `DataError` if there is nothing.
    """
    tables = [measured(place, params, name) for name, params in made.items()]
    if all(table.empty for table in tables):
        raise DataError(f"{place.absolute()} has nothing to record of {', '.join(made)}; `sfd status` lists what there is")
    return pd.concat(tables, ignore_index=True)


def read_reference(params: Params, classes: int, path: Path) -> pd.DataFrame:
    """Return the published curves, or the recorded ones in `path`. Raises `DataError` if that is no table of them."""
    if published_numbers.same_reference(params, classes):
        table = published_numbers.read_published("convergence").rename(columns={"model": "variant", "fid": "value"})
        seen = table["step"] * published_numbers.BATCH
        return table.assign(images_seen=seen, number=published_numbers.NUMBER, samples=published_numbers.SAMPLES)
    return read_table(path, [*COLUMNS, *PROTOCOL], "`sfd curve record` writes one of a finished run")


def compare(here: pd.DataFrame, reference: pd.DataFrame, params: Params, variant: str, name: str | None = None) -> Compared:
    """Compare a variant with the reference's curve `name` (default: the one of the same variant, or of its published model)."""
    group, published = params.variants[variant], not set(PROTOCOL) <= set(reference)
    name = name or (published_model(group) if published else variant)
    theirs = reference[reference["variant"] == name]
    if theirs.empty:
        return Compared([], [f"no reference of {name!r}; there are {', '.join(dict.fromkeys(reference['variant']))}"])
    rows, notes = [], []
    if published:
        trained = published_numbers.trained_otherwise(params, group)
        reason = published_numbers.sampled_otherwise(params.evaluate.sampler) or trained
        notes += [f"FID not compared: {reason}"] if reason else []
        notes += ["the published DiT has latents of 8 times downsampling in patches of 2"] if group.model == "dit" else []
        if group.learning_rate != published_numbers.LEARNING_RATE:
            notes.append(
                f"the reference has another recipe: learning rate {published_numbers.LEARNING_RATE}, here {group.learning_rate}"
            )
        here = here[:0] if reason else here[here["number"] == published_numbers.NUMBER]
    else:
        same = {key: (here[key] == theirs[key].iloc[0]).all() for key in PROTOCOL}
        if not same["latents"]:
            return Compared([], [f"not compared: the reference has other parameters or input files of {', '.join(LATENTS)}"])
        if not same["evaluation"]:
            notes.append("distances not compared: the reference has another sampler, other evaluators or other real images")
            here = here[here["samples"].isna()]
        if not same["recipe"]:
            notes.append("the reference has other parameters of train or of the variant, which may explain a difference")
    for number, points in here.groupby("number", sort=False):
        known = theirs[theirs["number"] == number]
        for _, alike in points.groupby("samples", dropna=False):
            samples = float(alike["samples"].iloc[0])
            fitting = known[known["samples"].isna() if math.isnan(samples) else known["samples"] == samples]
            if fitting.empty:
                counts = ", ".join(f"{count:,.0f}" for count in sorted(set(known["samples"].dropna())))
                of = "" if math.isnan(samples) else f" of {samples:,.0f} samples"
                notes.append(f"{number}{of} not compared: the reference has {f'{counts} samples' if counts else 'none'}")
            rows += [_row(point, fitting) for point in alike.itertuples() if not fitting.empty]
    return Compared(rows, notes)


def _row(point: Any, theirs: pd.DataFrame) -> tuple[str, ...]:
    """Return one row; between two points of the reference a number is linear in the logarithm of the images seen."""
    curve = theirs.sort_values("images_seen")
    seen, values = np.log(curve["images_seen"].to_numpy(float)), curve["value"].to_numpy(float)
    expected = float(np.interp(np.log(point.images_seen), seen, values, left=np.nan, right=np.nan))
    of = "" if pd.isna(point.samples) else f", {point.samples:,.0f} samples"
    shown = (text.count(point.step), f"{point.number}{of}", text.number(point.value))
    if not np.isfinite([expected, point.value]).all():
        return *shown, "", "", "no reference at this step" if np.isnan(expected) else "diverged"
    ratio = point.value / expected
    word = "as expected" if abs(ratio - 1) <= EXPECTED else f"{'behind' if ratio > 1 else 'ahead'} by {abs(ratio - 1):.0%}"
    return *shown, text.number(expected), f"{ratio:.2f}", word


def _losses(folder: Path) -> Iterator[tuple[int, int, str, float, float]]:
    """Yield step, images seen, number, NaN (no samples) and value: validation losses, the loss at their steps and at the end.

    How many images a step takes is as the training's curve says; before its first row nothing is known.
    """
    history = folder / "history.csv"
    rows = read_history(history) if history.is_file() else []
    if not rows:
        return
    images = rows[-1]["images_seen"] / rows[-1]["step"]
    validation = read_history(folder / "validation.csv") if (folder / "validation.csv").is_file() else []
    for step in sorted({int(row["step"]) for row in [*validation, *rows[-1:]]}):
        losses = [row["loss"] for row in rows if row["step"] <= step][-LOSS_ROWS:]
        if losses:
            yield step, round(step * images), "loss", np.nan, float(np.mean(losses))
    for row in validation:
        step, seen = int(row["step"]), round(row["step"] * images)
        yield from ((step, seen, f"validation loss {part}", np.nan, row[part]) for part in row if part != "step")


def _distances(outputs: Path, variant: str) -> Iterator[tuple[int, int, str, float, float]]:
    """Yield step, images seen, number, samples and value of the Fréchet distances of every snapshot, and of the final ones."""
    file = outputs / "evaluate" / variant / "numbers.json"
    if not file.is_file() or not is_of(file.parent, outputs / "train" / variant):
        return
    curve = read_curve(outputs, variant)
    names = [number.name for number in frechet_distances(curve)]
    for row in curve.to_dict("records"):
        yield from ((int(row["step"]), int(row["images_seen"]), name, row["samples"], row[name]) for name in names)
    final = require_json(file)["final"]
    for name in names:
        yield int(row["step"]), int(row["images_seen"]), name, final[name]["protocol"]["samples"], final[name]["value"]
