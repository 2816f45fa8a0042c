"""The study of solvers: distance and error over network evaluations of each solver, from the same noise."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfd_core.evaluation.bootstrap import resampled_distances, resampled_rows
from sfd_core.evaluation.extractors import FEATURES
from sfd_core.evaluation.measurement import Measured
from sfd_core.evaluation.metrics import number_name
from sfd_core.evaluation.rerun import Measurement
from sfd_core.experiment.params import SamplerParams
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.paths import atomic_path
from sfd_core.reporting.charts import leading_distance
from sfd_core.reporting.study_figures import solver_figure
from sfd_core.studies.study import Point, Study

TARGET_SOLVER = "euler"
ADAPTIVE_SOLVER = "dopri5"
EQUIVALENT = 0.005
"""Share of the target's distance that a point may be further, and still is as near as the target."""
EXACT_SOLVER = "heun"
EXACT_EVALUATIONS = 400
"""Stands for the exact solution; at 400 evaluations Heun's own error is far below that of every point of interest."""
ERROR_IMAGES = 64
"""The first so many images are compared with the exact solution."""
LATENTS = "latents"
RESAMPLES = 200
COVERED = 0.95
"""Share of the resamples between `difference_from` and `difference_to`."""


def plan_solvers(base: SamplerParams, solvers: Sequence[str], evaluations: Sequence[int], target: int) -> list[Point]:
    """Return every combination once, small budgets first, after Euler with `target` evaluations, which all are compared with.

    dopri5, which chooses its own number of evaluations, comes once, at the end. Everything else is as in `base`.
    Raises `ConfigError` for an impossible solver or budget.
    """
    fixed = [solver for solver in solvers if solver != ADAPTIVE_SOLVER]
    wanted = [(TARGET_SOLVER, target), *((solver, count) for count in sorted(evaluations) for solver in fixed)]
    wanted += [(ADAPTIVE_SOLVER, max(evaluations))] if ADAPTIVE_SOLVER in solvers else []
    return [_point(base, solver, count) for solver, count in dict.fromkeys(wanted)]


def run_solvers(measurement: Measurement, points: Sequence[Point], samples: int, out: Path) -> pd.DataFrame | None:
    """Measure all points, write `points/*`, `solvers.csv` and `solvers.png` to `out`, and return the table.

    The first point is the target. `difference_from` and `difference_to` bound how much further from the real images a point
    is than the target in 95 % of 200 resamples of the images, the same for both. `error` is the root mean square difference
    of the first 64 images' normalised latents to those of Heun with 400 evaluations. All processes but the first return None.
    Raises `ConfigError`, before anything is drawn, for a budget too small for the phases, `DataError` for a damaged file.
    """
    variant = measurement.pipeline.denoiser.variant
    if variant.family != "flow":
        raise ConfigError(f"{variant.model} is no velocity model, so no solver integrates it; choose another variant")
    study = Study("solvers", solver_figure, measurement, samples, out)

    def keep(point: Point, file: Path, measured: Measured) -> None:
        features = measured.features[f"{measurement.evaluator.main}/{FEATURES}"]
        _write_tensors(file, {FEATURES: features, LATENTS: _some_latents(study, point.sampler)})

    tables = list(study.measure(points, keep=keep))
    if not tables:
        return None
    table = _compared(study, tables[-1], _exact(study, points[0].sampler))
    study.write(table)
    return table


def smallest_budgets(table: pd.DataFrame) -> dict[str, int | None]:
    """Return, by solver, the fewest evaluations from which on it is as near to the real images as the target.

    That is where even the upper bound of the difference is at most 0.5 % of the target's distance; None for a solver that does
    not come there.
    """
    found: dict[str, int | None] = {}
    allowed = EQUIVALENT * float(table[leading_distance(table).name].iloc[0])
    for solver, points in table.groupby("solver", sort=False):
        falling = points.sort_values("evaluations", ascending=False)
        reached = falling[(falling["difference_to"] <= allowed).cummin()]
        found[str(solver)] = None if reached.empty else int(reached["evaluations"].min())
    return found


def _point(base: SamplerParams, solver: str, evaluations: int) -> Point:
    name = solver if solver == ADAPTIVE_SOLVER else f"{solver} with {evaluations} evaluations"
    return Point.of(name, {"solver": solver}, base, {"solver": solver, "evaluations": evaluations})


def _some_latents(study: Study, sampler: SamplerParams) -> Tensor:
    return study.measurement.pipeline.latents(0, study.labels[:ERROR_IMAGES], sampler).x.cpu()


def _exact(study: Study, base: SamplerParams) -> Tensor:
    point = _point(base, EXACT_SOLVER, EXACT_EVALUATIONS)
    file = study.points / f"{study.measurement.key(point.sampler, study.samples)}-exact.json"
    if not file.with_suffix(".safetensors").is_file():
        print(f"{point.name}, for the exact solution", file=sys.stderr, flush=True)
        _write_tensors(file, {LATENTS: _some_latents(study, point.sampler)})
    return _read(file, LATENTS)


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    with atomic_path(file.with_suffix(".safetensors")) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def _compared(study: Study, table: pd.DataFrame, exact: Tensor) -> pd.DataFrame:
    """Insert the columns of the comparison with the target and with the exact solution before the last one."""
    evaluator = study.measurement.evaluator
    reference = evaluator.references[evaluator.main]
    number = number_name("fd", reference.identity.name)
    files = [study.points / file for file in table["file"]]
    rows = resampled_rows(int(table["samples"].iloc[0]), RESAMPLES, int(table["seed"].iloc[0]))
    distances = [resampled_distances(_read(file, FEATURES), reference.frechet, rows) for file in files]
    differences = torch.stack(distances) - distances[0]
    low, high = differences.quantile(torch.tensor([(1 - COVERED) / 2, (1 + COVERED) / 2], dtype=torch.float64), dim=1)
    return table.drop(columns="file").assign(
        difference=table[number] - table[number].iloc[0],
        difference_from=low.numpy(),
        difference_to=high.numpy(),
        error=[(_read(file, LATENTS) - exact).square().mean().sqrt().item() for file in files],
        file=table["file"],
    )


def _read(file: Path, name: str) -> Tensor:
    file = file.with_suffix(".safetensors")
    try:
        return load_file(file)[name]
    except (OSError, SafetensorError, KeyError) as error:
        numbers = file.with_suffix(".json").name
        raise DataError(f"{file} holds no {name} ({error}); delete it and {numbers} and run the command again") from error
