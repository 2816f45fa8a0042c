"""Studies of one denoiser: `sfd guidance-curve`, `path-curve`, `error-field`, `solvers`; `sfd sweep-figure` draws a sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from sfd_core.cli.evaluation import drawn_measurement
from sfd_core.cli.options import (
    ARTIFACT,
    EVALUATIONS,
    PARAMS,
    SAMPLES,
    UNCHANGED,
    Drawing,
    Solver,
    artifact_folder,
    output,
    whole,
)
from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import atomic_path, stage_dir

if TYPE_CHECKING:
    import pandas as pd

    from sfd_core.experiment.params import Params

Weighting = Literal["uniform", "logit_normal", "likelihood"]
INTERVALS = "Where guidance acts on each part's own time, each as FROM,TO (default: 0,1)."
CORNERS = "Instead of offsets: times of texture and of semantics; every pair is the corner of a path, such as 0 0.5 1."
OFFSETS = "Offsets to sample along, -1 (texture finished first) to 1 (semantics finished first)."
SEMANTIC_WEIGHTS = "Weights of semantic errors relative to those of texture; each has a least-cost path (default: 1)."
WEIGHTING = "Of an error over the part's own time; logit_normal is the density of the training times."
OVER = Parameter(help="Columns that were swept, the axis first (default: the seed).", consume_multiple=True)


def guidance_curve(
    artifact: Annotated[str, ARTIFACT],
    /,
    *,
    scales: Annotated[list[float], Parameter(help="Guidance scales; 1 is none.")],
    intervals: Annotated[list[str] | None, Parameter(help=INTERVALS)] = None,
    parts: Annotated[Literal["both", "texture", "semantic"], Parameter(help="What is varied.")] = "both",
    samples: Annotated[int | None, SAMPLES] = None,
    out: Annotated[Path, output("Folder of curve.csv, curve.png and points/*.json.", folder=True)],
    evaluations: Annotated[list[int] | None, EVALUATIONS] = None,
    drawing: Drawing = UNCHANGED,
) -> None:
    """Measure a denoiser over guidance scales, intervals, evaluations.

    Every combination is a point; points that are measured already are kept.
    """
    from sfd_core.experiment.drawable import require_parts
    from sfd_core.experiment.params import load_params

    spans = [parse_interval(words) for words in intervals or ["0,1"]]
    if given := drawing.of_parts(("texture", "semantic") if parts == "both" else (parts,), ("scale", "interval")):
        raise ConfigError(
            f"{given} would change nothing: guidance-curve varies that with --scales and --intervals; leave it out"
        )
    params = load_params(PARAMS)
    base = drawing.sampler(params, scales=scales)
    from sfd_core.studies.guidance import plan_points, run_curve

    points = plan_points(base, scales, spans, evaluations or [base.evaluations], parts)
    measurement = drawn_measurement(params, artifact, drawing, base, evaluations)
    require_parts(base.guidance, parts, artifact, measurement.pipeline.denoiser.variant, "--parts")
    table = run_curve(measurement, points, samples or params.evaluate.final_samples, out, parts)
    if table is not None:
        _print(table, ["scale", "interval_from", "interval_to", "evaluations"], ("fid", "fd_", "sfid", "is"))
        print(f"\n{out / 'curve.csv'}, {out / 'curve.png'}")
    measurement.processes.leave()


def path_curve(
    artifact: Annotated[str, ARTIFACT],
    /,
    *,
    offsets: Annotated[list[float] | None, Parameter(help=OFFSETS)] = None,
    corners: Annotated[list[float] | None, Parameter(help=CORNERS)] = None,
    samples: Annotated[int | None, SAMPLES] = None,
    out: Annotated[Path, output("Folder of points/*.json, and of offsets or corners as .csv and .png.", folder=True)],
    evaluations: Annotated[int | None, EVALUATIONS] = None,
    drawing: Drawing = UNCHANGED,
) -> None:
    """Measure a denoiser of any order over offsets, or over the corner of its path as a map, without training.

    The denoiser needs independent times in training (`times: {kind: independent}`). Points that are measured already are kept.
    """
    from sfd_core.experiment.params import load_params

    _require_no_order(drawing, "path-curve", "which compares several; name them with --offsets or --corners")
    params = load_params(PARAMS)
    base = drawing.sampler(params, evaluations)
    from sfd_core.studies.orders import plan_corners, plan_offsets, run_orders

    if (offsets is None) == (corners is None):
        raise ConfigError("path-curve compares offsets or corners; give either --offsets or --corners")
    kind, points = ("corners", plan_corners(base, corners)) if corners else ("offsets", plan_offsets(base, offsets or []))
    measurement = drawn_measurement(params, artifact, drawing, base, evaluations)
    table = run_orders(kind, measurement, points, samples or params.evaluate.final_samples, out)
    if table is not None:
        _print(table, [name for name in ("delta_t", "t_tex", "t_sem") if name in table], ("fid", "fd_", "sfid", "is"))
        print(f"\n{out / f'{kind}.csv'}, {out / f'{kind}.png'}")
        _print_confirmation(params, artifact_folder(artifact), table)
    measurement.processes.leave()


def error_field(
    artifact: Annotated[str, ARTIFACT],
    /,
    *,
    points: Annotated[int, whole("Local times of either part, evenly spaced.", at_least=3)] = 17,
    images: Annotated[int, whole("Held-out images.")] = 256,
    weighting: Annotated[Weighting, Parameter(help=WEIGHTING)] = "logit_normal",
    semantic_weights: Annotated[list[float] | None, Parameter(help=SEMANTIC_WEIGHTS)] = None,
    samples: Annotated[int | None, SAMPLES] = None,
    out: Annotated[Path, output("Folder of field.npz, error_field.csv, error_field.png and points/*.json.", folder=True)],
    evaluations: Annotated[int | None, EVALUATIONS] = None,
    drawing: Drawing = UNCHANGED,
) -> None:
    """Measure where a denoiser of any order errs, and sample it along the least-cost paths, without training.

    The denoiser needs independent times in training (`times: {kind: independent}`). The printed paths fit `--path` and
    `evaluate.sampler.path`.
    """
    from sfd_core.experiment.params import ErrorFieldStudy, load_params, parse_group

    _require_no_order(drawing, "error-field", "which finds paths of its own")
    params = load_params(PARAMS)
    base = drawing.sampler(params, evaluations)
    asked = {"points": points, "images": images, "weighting": weighting, "semantic_weights": semantic_weights or [1.0]}
    study = parse_group(ErrorFieldStudy, {"kind": "error_field", "variant": artifact, **asked}, "the error field")
    from sfd_core.studies.error_field import run_error_field

    measurement = drawn_measurement(params, artifact, drawing, base, evaluations)
    table = run_error_field(measurement, study, base, samples or params.evaluate.final_samples, stage_dir("encode"), out)
    if table is not None:
        _print(table, ["semantic_weight", "path"], ("fid", "fd_", "sfid", "is"))
        print(f"\n{out / 'field.npz'}, {out / 'error_field.csv'}, {out / 'error_field.png'}")
    measurement.processes.leave()


def solvers(
    artifact: Annotated[str, ARTIFACT],
    /,
    *,
    solvers: Annotated[list[Solver] | None, Parameter(help="Solvers to compare (default: euler heun ab2).")] = None,
    target: Annotated[int, whole("Evaluations of Euler that all are compared with.")] = 100,
    samples: Annotated[int | None, SAMPLES] = None,
    out: Annotated[Path, output("Folder of solvers.csv, solvers.png and points/*.", folder=True)],
    evaluations: Annotated[list[int] | None, EVALUATIONS] = None,
    drawing: Drawing = UNCHANGED,
) -> None:
    """Measure a denoiser over solvers and evaluations.

    All start from the same noise; points that are measured already are kept. Prints how few evaluations of each solver come as
    near to the real images as many of Euler's.
    """
    from sfd_core.experiment.params import load_params

    if drawing.solver is not None:
        raise ConfigError("--solver is not for `sfd solvers`, which compares several; name them with --solvers")
    params = load_params(PARAMS)
    base = drawing.sampler(params)
    from sfd_core.studies.solvers import plan_solvers, run_solvers, smallest_budgets

    points = plan_solvers(base, solvers or ["euler", "heun", "ab2"], evaluations or [base.evaluations], target)
    measurement = drawn_measurement(params, artifact, drawing, base)
    table = run_solvers(measurement, points, samples or params.evaluate.final_samples, out)
    if table is not None:
        _print(table, ["solver", "evaluations"], ("fid", "fd_", "difference", "error"))
        print(f"\nAs near to the real images as euler with {target} evaluations, to half a percent:")
        for solver, budget in smallest_budgets(table).items():
            print(f"{solver:<8} {'at no budget that was measured' if budget is None else f'from {budget} evaluations on'}")
        print(f"\n{out / 'solvers.csv'}, {out / 'solvers.png'}")
    measurement.processes.leave()


def sweep_figure(
    table: Annotated[Path, Parameter(help="table.csv of a sweep.")],
    /,
    *,
    over: Annotated[list[str] | None, OVER] = None,
    out: Annotated[Path, output("The PNG file.")],
) -> None:
    """Draw the leading distance of a sweep, with error bars over seeds."""
    from sfd_core.reporting.charts import save_figure
    from sfd_core.reporting.sources import read_table
    from sfd_core.reporting.sweep import sweep_figure as drawn

    axes = over or []
    rows = read_table(table, ["variant", "seed", *axes], "name the table.csv of a sweep, and columns that it has")
    with atomic_path(out) as temporary:
        save_figure(drawn(rows, axes), temporary)
    print(out)


def parse_interval(words: str) -> tuple[float, float]:
    """Read two times such as `0.1,1`. Raises `ConfigError` for anything else."""
    try:
        low, high = (float(part) for part in words.split(","))
    except ValueError as error:
        raise ConfigError(f"--intervals {words!r} is no interval; write two times with a comma, such as 0.1,1") from error
    return low, high


def _require_no_order(drawing: Drawing, command: str, reason: str) -> None:
    for option, value in (("--delta-t", drawing.delta_t), ("--path", drawing.path)):
        if value is not None:
            raise ConfigError(f"{option} is not for `sfd {command}`, {reason}")


def _print_confirmation(params: "Params", artifact: Path, table: "pd.DataFrame") -> None:
    """Print the command that trains the best two paths for themselves, if the denoiser is a variant of the parameters."""
    from sfd_core.experiment.confirmation import WARNING, Confirmation
    from sfd_core.sampling.artifact import DenoiserManifest

    variant = DenoiserManifest.read(artifact).variant_name
    if variant in params.variants and len(table) > 1:
        command = Confirmation.of(variant, table.to_dict("records")).command
        print(f"\nTo confirm the best two paths, as {WARNING}:\n{command}")


def _print(table: "pd.DataFrame", axes: list[str], numbers: tuple[str, ...]) -> None:
    print(table[[*axes, *(name for name in table.columns if name.startswith(numbers))]].to_string(index=False))
