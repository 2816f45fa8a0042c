"""The study of offsets: numbers of one denoiser sampled along several paths, without any training."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sfd_core.evaluation.error_field import require_any_order
from sfd_core.evaluation.rerun import Measurement
from sfd_core.experiment.params import SamplerParams
from sfd_core.reporting.study_figures import offset_figure
from sfd_core.studies.study import Point, Study


def plan_offsets(base: SamplerParams, offsets: Sequence[float]) -> list[Point]:
    """Return every offset once, in rising order, sampled as `base`. Raises `ConfigError` for an impossible one."""
    return [
        Point.of(f"offset {offset:g}", {"delta_t": float(offset)}, base, {"delta_t": float(offset), "path": None})
        for offset in sorted(set(offsets))
    ]


def run_offsets(
    measurement: Measurement,
    points: Sequence[Point],
    samples: int,
    out: Path,
) -> pd.DataFrame | None:
    """Measure all points, write `points/*.json`, `offsets.csv` and `offsets.png` to `out`, and return the table.

    Only a denoiser whose texture and semantics had independent times in training (`times: independent`) knows every path. All
    processes but the first return None. Raises `ConfigError` for another denoiser, `DataError` for a damaged file of a point.
    """
    require_any_order(measurement.pipeline.denoiser)
    return Study("offsets", offset_figure, measurement, samples, out).run(points)
