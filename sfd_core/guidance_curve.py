"""Numbers over guidance scale, interval and evaluations, without any training: one file a point, a table and a figure of all.

A point that is there already is not drawn again, and one that was broken off goes on where it stood.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import ValidationError

from sfd_core.config import SamplerParams
from sfd_core.errors import ConfigError, DataError
from sfd_core.evaluation.labels import class_balanced_labels
from sfd_core.measurement import Order, Progress
from sfd_core.paths import atomic_path
from sfd_core.reporting.guidance import write_guidance_figure
from sfd_core.rerun import Measurement, write_numbers

Parts = Literal["both", "texture", "semantic"]
PROTOCOL_COLUMNS = ("samples", "labels", "seed", "sampler", "extractor", "weights", "reference", "reference_digest")
"""What of a number's protocol stands in the table."""
WHOLE = (0.0, 1.0)


@dataclass(frozen=True)
class Point:
    """One setting of the sampler."""

    scale: float
    interval: tuple[float, float]
    evaluations: int
    sampler: SamplerParams


def plan_points(
    base: SamplerParams,
    scales: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    evaluations: Sequence[int],
    parts: Parts = "both",
) -> list[Point]:
    """Return every combination once, guided as `base` but for scale and interval of `parts`.

    At scale 1 guidance does nothing, whatever its interval: such points are one. Raises `ConfigError` if `base` is not guided
    or a value cannot be.
    """
    if base.guidance == "none":
        raise ConfigError("guidance is none, so there is nothing to vary; choose --guidance cfg or autoguidance")
    points: dict[tuple[float, tuple[float, float], int], Point] = {}
    for count, interval, scale in product(evaluations, intervals, scales):
        where = interval if scale != 1 or parts != "both" else WHOLE
        points.setdefault((scale, where, count), Point(scale, where, count, _sampler(base, scale, where, count, parts)))
    return list(points.values())


def run_curve(
    measurement: Measurement,
    points: Sequence[Point],
    samples: int,
    out: Path,
    progress: Callable[[str, int], Progress],
    told: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame | None:
    """Measure all points, write `points/*.json`, `curve.csv` and `curve.png` to `out`, and return the table.

    All processes but the first return None.
    The table and the figure are renewed after every point. Raises `DataError` for a damaged file of a point.
    """
    labels = class_balanced_labels(samples, len(measurement.pipeline.denoiser.classes)).tolist()
    rows: list[dict[str, Any]] = []
    for number, point in enumerate(points, start=1):
        file = out / "points" / f"{measurement.key(point.sampler, samples)}.json"
        what = (
            f"point {number} of {len(points)}: scale {point.scale:g} in {list(point.interval)}, {point.evaluations} evaluations"
        )
        # every process must come to the same answer before the first one writes the file
        known = file.is_file()
        measurement.processes.wait()
        if measurement.processes.first:
            told(f"{what}: measured already" if known else what)
        if not known:
            result = measurement.run(Order(labels, point.sampler), False, progress(what, point.sampler.batch_size))
            if result is not None:
                write_numbers(file, {"final": result[0]})
                result[1].forget()
        if measurement.processes.first:
            rows.append(_row(point, file))
            _write(pd.DataFrame(rows), out)
    return pd.DataFrame(rows) if measurement.processes.first else None


def _sampler(base: SamplerParams, scale: float, interval: tuple[float, float], evaluations: int, parts: Parts) -> SamplerParams:
    varied = ("texture", "semantic") if parts == "both" else (parts,)
    guided = {part: {"scale": scale, "interval": list(interval)} for part in varied}
    try:
        return SamplerParams.model_validate(base.model_dump(mode="json") | {"evaluations": evaluations} | guided)
    except ValidationError as error:
        raise ConfigError(
            f"scale {scale:g} in {list(interval)} with {evaluations} evaluations cannot be drawn: {error.errors()[0]['msg']}"
        ) from error


def _row(point: Point, file: Path) -> dict[str, Any]:
    try:
        numbers: Mapping[str, Any] = json.loads(file.read_text())["final"]
        protocol = next(iter(numbers.values()))["protocol"]
        return {
            "scale": point.scale,
            "interval_from": point.interval[0],
            "interval_to": point.interval[1],
            "evaluations": protocol["evaluations"],
            "guidance": protocol["guidance"],
            "step": protocol["recipe"]["step"],
            **{name: protocol[name] for name in PROTOCOL_COLUMNS},
            **{name: number["value"] for name, number in numbers.items()},
            "file": file.name,
        }
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise DataError(f"{file} holds no numbers of a point ({error!r}); delete it and run the command again") from error


def _write(table: pd.DataFrame, out: Path) -> None:
    with atomic_path(out / "curve.csv") as temporary:
        table.to_csv(temporary, index=False)
    with atomic_path(out / "curve.png") as temporary:
        write_guidance_figure(table, temporary)
