"""The study of the error field: velocity errors over both local times, and numbers along the paths that cost least on them."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from sfd_core.data.store.shards import ShardReader
from sfd_core.diffusion.error_field import ErrorField, PathCosts, least_cost_path
from sfd_core.evaluation.error_field import measure_error_field, read_field, require_any_order, write_field
from sfd_core.evaluation.rerun import Measurement
from sfd_core.experiment.params import ErrorFieldStudy, SamplerParams, fingerprint
from sfd_core.latents.identity import open_latents
from sfd_core.reporting.study_figures import error_field_figure
from sfd_core.studies.study import Point, Study


def plan_least_cost(base: SamplerParams, field: ErrorField, study: ErrorFieldStudy) -> list[Point]:
    """Return a point for every weight of the semantic errors, sampled as `base` along the path that costs least then."""
    points = []
    for weight in sorted(set(study.semantic_weights)):
        path = [list(corner) for corner in least_cost_path(PathCosts(field, weight, study.weighting))]
        settings = {"semantic_weight": float(weight), "path": json.dumps(path)}
        points.append(Point.of(f"semantic weight {weight:g}", settings, base, {"delta_t": None, "path": path}))
    return points


def run_error_field(
    measurement: Measurement, study: ErrorFieldStudy, base: SamplerParams, samples: int, encode: Path, out: Path
) -> pd.DataFrame | None:
    """Measure the field and the points of `plan_least_cost`; return the table, in all processes but the first None.

    Writes `field.npz` (`times` (K,), `texture` and `semantic` (K, K), see `ErrorField`), `points/*.json`, `error_field.csv` and
    `error_field.png` to `out`. The latents are the held-out ones in `encode`, the folder of that stage. Raises `ConfigError`
    for a denoiser or guide that knows one path, or fewer evaluations than a path has straight pieces, and `IdentityError` for
    a denoiser that was trained on other latents.
    """
    denoiser = measurement.pipeline.denoiser
    require_any_order(denoiser, measurement.pipeline.guide)
    latents = open_latents(encode, "held_out", denoiser.identity, "the error field")
    field = _field(measurement, study, base.batch_size, latents, out / "field.npz")

    def plan(weights: list[float]) -> list[Point]:
        return plan_least_cost(base, field, study.model_copy(update={"semantic_weights": weights}))

    drawn = Study("error_field", partial(error_field_figure, field), measurement, samples, out)
    return drawn.run(plan(study.semantic_weights), lambda row: plan([row["semantic_weight"]])[0].sampler)


def _field(measurement: Measurement, study: ErrorFieldStudy, batch_size: int, latents: ShardReader, file: Path) -> ErrorField:
    """Return the field that lies in `file` if it is this one; else the first process measures it, and all read it."""
    key = fingerprint(measurement.weights, latents.digest, study.points, study.images)
    if measurement.processes.first and (not file.is_file() or str(np.load(file)["key"]) != key):
        denoiser, device = measurement.pipeline.denoiser, measurement.pipeline.device
        field = measure_error_field(denoiser, latents, study.points, study.images, batch_size, device)
        write_field(file, field, key=np.array(key))
    measurement.processes.wait()
    return read_field(file)
