"""Numbers over guidance scale, interval and evaluations, without any training: one file a point, a table and a figure of all.

A point that is there already is not drawn again, and one that was broken off goes on where it stood.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from sfd_core.evaluation.labels import class_balanced_labels
from sfd_core.evaluation.measurement import Progress
from sfd_core.evaluation.rerun import Measurement
from sfd_core.experiment.params import SamplerParams
from sfd_core.host.errors import ConfigError
from sfd_core.reporting.guidance import write_guidance_figure
from sfd_core.studies.study import changed_sampler, measure_points, read_row, write_table

Parts = Literal["both", "texture", "semantic"]
COLUMNS = (
    "evaluations",
    "guidance",
    "step",
    "samples",
    "labels",
    "seed",
    "sampler",
    "extractor",
    "weights",
    "reference",
    "reference_digest",
)
"""What of a number's protocol stands in the table."""
WHOLE = (0.0, 1.0)


@dataclass(frozen=True)
class Point:
    """One setting of the sampler."""

    scale: float
    interval: tuple[float, float]
    evaluations: int
    sampler: SamplerParams

    @property
    def name(self) -> str:
        """The point in words."""
        return f"scale {self.scale:g} in {list(self.interval)}, {self.evaluations} evaluations"


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
    for point, file in measure_points(measurement, points, labels, out / "points", progress, told):
        if measurement.processes.first:
            rows.append(_row(point, file))
            write_table(pd.DataFrame(rows), out / "curve", write_guidance_figure)
    return pd.DataFrame(rows) if measurement.processes.first else None


def _sampler(base: SamplerParams, scale: float, interval: tuple[float, float], evaluations: int, parts: Parts) -> SamplerParams:
    varied = ("texture", "semantic") if parts == "both" else (parts,)
    guided = {part: {"scale": scale, "interval": list(interval)} for part in varied}
    what = f"scale {scale:g} in {list(interval)} with {evaluations} evaluations"
    return changed_sampler(base, {"evaluations": evaluations} | guided, what)


def _row(point: Point, file: Path) -> dict[str, Any]:
    settings = {"scale": point.scale, "interval_from": point.interval[0], "interval_to": point.interval[1]}
    return read_row(file, settings, COLUMNS)
