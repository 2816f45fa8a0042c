"""The studies of orders: numbers of one denoiser along offsets, or over the corners of a path, without any training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sfd_core.evaluation.error_field import require_any_order
from sfd_core.evaluation.rerun import Measurement
from sfd_core.experiment.params import SamplerParams
from sfd_core.experiment.paths import corner_paths
from sfd_core.reporting.study_figures import corner_figure, offset_figure
from sfd_core.studies.study import Point, Study

FIGURES = {"offsets": offset_figure, "corners": corner_figure}


def plan_offsets(base: SamplerParams, offsets: Sequence[float]) -> list[Point]:
    """Return every offset once, in rising order, sampled as `base`. Raises `ConfigError` for an impossible one."""
    return [_offset(base, offset) for offset in sorted(set(offsets))]


def plan_corners(base: SamplerParams, times: Sequence[float]) -> list[Point]:
    """Return `corner_paths(times)`, sampled as `base`. Raises `ConfigError` for an impossible time."""
    return [_corner(base, *path[1]) for path in corner_paths(times)]


def run_orders(kind: str, measurement: Measurement, points: Sequence[Point], samples: int, out: Path) -> pd.DataFrame | None:
    """Measure all points, write `points/*.json`, `<kind>.csv` and `<kind>.png` to `out`, and return the table.

    Only a denoiser whose texture and semantics had independent times in training (`times: independent`) knows every path. All
    processes but the first return None. Raises `ConfigError` for another denoiser or guide, `DataError` for a damaged file of a
    point.
    """
    require_any_order(measurement.pipeline.denoiser, measurement.pipeline.guide)

    def again(row: Mapping[str, Any]) -> SamplerParams:
        base = points[0].sampler
        point = _corner(base, row["t_tex"], row["t_sem"]) if kind == "corners" else _offset(base, row["delta_t"])
        return point.sampler

    return Study(kind, FIGURES[kind], measurement, samples, out).run(points, again)


def _offset(base: SamplerParams, offset: float) -> Point:
    return Point.of(f"offset {offset:g}", {"delta_t": float(offset)}, base, {"delta_t": float(offset), "path": None})


def _corner(base: SamplerParams, t_tex: float, t_sem: float) -> Point:
    changes = {"delta_t": None, "path": [[0.0, 0.0], [t_tex, t_sem], [1.0, 1.0]]}
    return Point.of(f"corner {t_tex:g}/{t_sem:g}", {"t_tex": t_tex, "t_sem": t_sem}, base, changes)
