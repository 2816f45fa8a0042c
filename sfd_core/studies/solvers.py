"""Distance over network evaluations for each solver, from the same noise: one file a point, a table and a figure of all.

A point that is there already is not drawn again, and one that was broken off goes on where it stood.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfd_core.diffusion.solver import SolverSettings
from sfd_core.evaluation.bootstrap import resampled_distances, resampled_rows
from sfd_core.evaluation.extractors import FEATURES
from sfd_core.evaluation.labels import class_balanced_labels
from sfd_core.evaluation.measurement import Measured, Progress
from sfd_core.evaluation.metrics import number_name
from sfd_core.evaluation.rerun import Measurement
from sfd_core.experiment.params import SamplerParams
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.paths import atomic_path
from sfd_core.reporting.solvers import write_solver_figure
from sfd_core.studies.study import changed_sampler, measure_points, read_row, write_table

TARGET_SOLVER = "euler"
ADAPTIVE_SOLVER = "dopri5"
EQUIVALENT = 0.005
"""Share of the target's distance that a point may be further, and still is as near as the target."""
EXACT_SOLVER = "heun"
EXACT_EVALUATIONS = 400
"""Stands for the exact solution; at 400 evaluations Heun's own error is far below that of every point of interest."""
ERROR_IMAGES = 64
"""The first so many images are held against the exact solution."""
LATENTS = "latents"
RESAMPLES = 200
COVERED = 0.95
"""Share of the resamples between `difference_from` and `difference_to`."""
COLUMNS = (
    "evaluations",
    "step",
    "samples",
    "labels",
    "seed",
    "sampler",
    "guidance",
    "extractor",
    "weights",
    "reference",
    "reference_digest",
)
"""What of a number's protocol stands in the table."""


@dataclass(frozen=True)
class SolverPoint:
    """A solver and its budget of evaluations."""

    sampler: SamplerParams

    @property
    def name(self) -> str:
        """The point in words."""
        solver = self.sampler.solver
        return solver if solver == ADAPTIVE_SOLVER else f"{solver} with {self.sampler.evaluations} evaluations"


def plan_solvers(base: SamplerParams, solvers: Sequence[str], evaluations: Sequence[int], target: int) -> list[SolverPoint]:
    """Return every combination once, small budgets first, after Euler with `target` evaluations, which all are compared with.

    dopri5, which chooses its own number of evaluations, comes once, at the end. Everything else is as in `base`.
    Raises `ConfigError` for a solver or budget that cannot be.
    """
    fixed = [solver for solver in solvers if solver != ADAPTIVE_SOLVER]
    wanted = [(TARGET_SOLVER, target), *((solver, count) for count in sorted(evaluations) for solver in fixed)]
    wanted += [(ADAPTIVE_SOLVER, max(evaluations))] if ADAPTIVE_SOLVER in solvers else []
    return [SolverPoint(_sampler(base, solver, count)) for solver, count in dict.fromkeys(wanted)]


def run_solvers(
    measurement: Measurement,
    points: Sequence[SolverPoint],
    samples: int,
    out: Path,
    progress: Callable[[str, int], Progress],
    told: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame | None:
    """Measure all points, write `points/*`, `solvers.csv` and `solvers.png` to `out`, and return the table.

    The first point is the target. `difference_from` and `difference_to` bound how much further from the real images a point
    is than the target in 95 % of 200 resamples of the images, the same for both. `error` is the root mean square difference
    of the first 64 images' normalised latents to those of Heun with 400 evaluations. All processes but the first return None.
    Raises `ConfigError`, before anything is drawn, for a budget too small for the phases, `DataError` for a damaged file.
    """
    _require_possible(measurement, points)
    labels = class_balanced_labels(samples, len(measurement.pipeline.denoiser.classes)).tolist()

    def keep(point: SolverPoint, file: Path, measured: Measured) -> None:
        features = measured.features[f"{measurement.judge.main}/{FEATURES}"]
        _write_tensors(file, {FEATURES: features, LATENTS: _some_latents(measurement, labels, point.sampler)})

    rows: list[dict[str, Any]] = []
    for point, file in measure_points(measurement, points, labels, out / "points", progress, told, keep):
        if measurement.processes.first:
            rows.append(read_row(file, {"solver": point.sampler.solver}, COLUMNS))
    if not measurement.processes.first:
        return None
    exact = _exact(measurement, points[0].sampler, labels, out / "points", told)
    table = _compared(measurement, pd.DataFrame(rows), out / "points", exact)
    write_table(table, out / "solvers", write_solver_figure)
    return table


def smallest_budgets(table: pd.DataFrame) -> dict[str, int | None]:
    """Return, by solver, the fewest evaluations from which on it is as near to the real images as the target.

    That is where even the upper bound of the difference is at most 0.5 % of the target's distance; None for a solver that does
    not come there.
    """
    found: dict[str, int | None] = {}
    distance = next(name for name in table.columns if name.startswith("fd_"))
    allowed = EQUIVALENT * float(table[distance].iloc[0])
    for solver, points in table.groupby("solver", sort=False):
        falling = points.sort_values("evaluations", ascending=False)
        reached = falling[(falling["difference_to"] <= allowed).cummin()]
        found[str(solver)] = None if reached.empty else int(reached["evaluations"].min())
    return found


def _sampler(base: SamplerParams, solver: str, evaluations: int) -> SamplerParams:
    changes = {"solver": solver, "evaluations": evaluations}
    return changed_sampler(base, changes, f"{solver} with {evaluations} evaluations")


def _require_possible(measurement: Measurement, points: Sequence[SolverPoint]) -> None:
    denoiser = measurement.pipeline.denoiser
    if denoiser.variant.family != "flow":
        raise ConfigError(f"{denoiser.variant.model} is no velocity model, so no solver integrates it; choose another variant")
    for sampler in (point.sampler for point in points):
        settings = SolverSettings(sampler.solver, sampler.evaluations, sampler.shift)
        denoiser.schedule.grid(settings.intervals, settings.shift)


def _some_latents(measurement: Measurement, labels: Sequence[int], sampler: SamplerParams) -> Tensor:
    return measurement.pipeline.latents(0, labels[:ERROR_IMAGES], sampler).x.cpu()


def _exact(
    measurement: Measurement, base: SamplerParams, labels: Sequence[int], folder: Path, told: Callable[[str], None]
) -> Tensor:
    sampler = _sampler(base, EXACT_SOLVER, EXACT_EVALUATIONS)
    file = folder / f"{measurement.key(sampler, len(labels))}-exact.json"
    if not file.with_suffix(".safetensors").is_file():
        told(f"{SolverPoint(sampler).name}, for the exact solution")
        _write_tensors(file, {LATENTS: _some_latents(measurement, labels, sampler)})
    return _read(file, LATENTS)


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    with atomic_path(file.with_suffix(".safetensors")) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def _compared(measurement: Measurement, table: pd.DataFrame, folder: Path, exact: Tensor) -> pd.DataFrame:
    judge = measurement.judge
    reference = judge.references[judge.main]
    number = number_name("fd", reference.identity.name)
    rows = resampled_rows(int(table["samples"].iloc[0]), RESAMPLES, int(table["seed"].iloc[0]))
    distances = [resampled_distances(_read(folder / file, FEATURES), reference.frechet, rows) for file in table["file"]]
    differences = torch.stack(distances) - distances[0]
    low, high = differences.quantile(torch.tensor([(1 - COVERED) / 2, (1 + COVERED) / 2], dtype=torch.float64), dim=1)
    bounds = {
        "difference": (table[number] - table[number].iloc[0]).tolist(),
        "difference_from": low.tolist(),
        "difference_to": high.tolist(),
        "error": [(_read(folder / file, LATENTS) - exact).square().mean().sqrt().item() for file in table["file"]],
    }
    at = int(table.columns.get_loc("file"))  # type: ignore[arg-type]
    for shift, (name, values) in enumerate(bounds.items()):
        table.insert(at + shift, name, values)
    return table


def _read(file: Path, name: str) -> Tensor:
    file = file.with_suffix(".safetensors")
    try:
        return load_file(file)[name]
    except (OSError, SafetensorError, KeyError) as error:
        numbers = file.with_suffix(".json").name
        raise DataError(f"{file} holds no {name} ({error}); delete it and {numbers} and run the command again") from error
