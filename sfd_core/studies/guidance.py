"""The study of guidance: numbers over scale, interval and evaluations, without any training."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from sfd_core.evaluation.rerun import Measurement
from sfd_core.experiment.params import SamplerParams
from sfd_core.host.errors import ConfigError
from sfd_core.reporting.study_figures import guidance_figure
from sfd_core.studies.study import COLUMNS, Point, Study

Parts = Literal["both", "texture", "semantic"]
WHOLE = (0.0, 1.0)


def guided_by(base: SamplerParams, kind: str, guide: Path | None, guide_step: int | None) -> SamplerParams:
    """Return `base` with guidance of this kind, at scale 1."""
    changes = {"guidance": kind, "guide": guide and str(guide), "guide_step": guide_step}
    off = {part: {"scale": 1.0, "interval": list(WHOLE)} for part in ("texture", "semantic")}
    return Point.of(f"guidance {kind}", {}, base, changes | off).sampler


def plan_points(
    base: SamplerParams,
    scales: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    evaluations: Sequence[int],
    parts: Parts = "both",
) -> list[Point]:
    """Return every combination once, guided as `base` but for scale and interval of `parts`.

    At scale 1 guidance does nothing, so points of other intervals are one. Raises `ConfigError` if `base` is not guided or a
    value is impossible.
    """
    if base.guidance == "none":
        raise ConfigError(
            "guidance is none, so there is nothing to vary; choose --guidance cfg, autoguidance, internal or semantic"
        )
    varied = ("texture", "semantic") if parts == "both" else (parts,)
    points: dict[tuple[int, tuple[float, float], float], Point] = {}
    for count, interval, scale in product(evaluations, intervals, scales):
        low, high = interval if scale != 1 or parts != "both" else WHOLE
        points[count, (low, high), scale] = Point.of(
            f"scale {scale:g} in {[low, high]}, {count} evaluations",
            {"scale": scale, "interval_from": low, "interval_to": high},
            base,
            {"evaluations": count} | {part: {"scale": scale, "interval": [low, high]} for part in varied},
        )
    return list(points.values())


def run_curve(
    measurement: Measurement, points: Sequence[Point], samples: int, out: Path, parts: Parts = "both"
) -> pd.DataFrame | None:
    """Measure all points of `parts`, write `points/*.json`, `curve.csv` and `curve.png` to `out`, and return the table.

    The table and the figure are renewed after every point. All processes but the first return None. Raises `DataError` for a
    damaged file of a point.
    """

    def again(row: Mapping[str, Any]) -> SamplerParams:
        interval = (row["interval_from"], row["interval_to"])
        (point,) = plan_points(points[0].sampler, [row["scale"]], [interval], [row["evaluations"]], parts)
        return point.sampler

    study = Study("curve", guidance_figure, measurement, samples, out)
    return study.run(points, again, dict.fromkeys(("evaluations", "guidance", *COLUMNS)))
