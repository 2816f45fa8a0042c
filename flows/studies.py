"""Studies of one trained denoiser: guidance (`sfd guidance-curve`) and orders (`sfd path-curve`), without further training."""

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run
from pydantic import Field

from flows import limits
from flows.artifacts import artifact_key, show_picture
from flows.point import compute
from flows.sweep import Name, Preset, Sweep, cancel, run_sweep
from sfd_core.experiment.code import pipeline_code
from sfd_core.experiment.confirmation import WARNING, Confirmation
from sfd_core.experiment.drawable import require_fixed_steps, require_parts
from sfd_core.experiment.grid import CURRENT, Point, Space, base_values, plan_points
from sfd_core.experiment.numbers import number_name
from sfd_core.experiment.params import Fraction, NonNegative, Offset, Positive, Samples, parse_params
from sfd_core.experiment.paths import corner_paths
from sfd_core.host import machine
from sfd_core.host.errors import ConfigError
from sfd_core.tracking.comparison import SWEEPS, send_to_mlflow
from sfd_core.tracking.sweep import SweepPoint
from sfd_core.workspace import git, journal
from sfd_core.workspace.dvc import Place
from sfd_core.workspace.experiments import point_place

Interval = Annotated[list[Fraction], Field(min_length=2, max_length=2)]
Parts = Literal["both", "texture", "semantic"]
Rows = list[dict[str, Any]]
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.+-]+")


@dataclass(frozen=True)
class _Study:
    """What a person asks for, and the command that measures it."""

    name: str
    variant: str
    preset: str
    command: Sequence[str]
    file: str
    """Table and figure, without suffix."""
    settings: Sequence[str]
    """Columns of the table that say how a row was sampled."""
    changes: Mapping[str, Any]
    """Dotted key of the parameters -> value, equal for all points."""
    plan: Callable[[Point], Rows]
    """Returns the checked points of the denoiser."""


@flow(name="guidance sweep", flow_run_name="{name}", persist_result=False)
def guidance_sweep(
    name: Name = "guidance",
    variant: str = "sfd",
    guidance: Literal["cfg", "autoguidance", "internal", "semantic"] = "cfg",
    guide: str | None = None,
    scales: Annotated[list[NonNegative], Field(min_length=1)] = [1.0, 1.25, 1.5, 2.0],
    intervals: Annotated[list[Interval], Field(min_length=1)] = [[0.0, 1.0]],
    evaluations: list[Positive] = [],
    parts: Parts = "both",
    samples: Samples | None = None,
    preset: Preset = CURRENT,
    dry_run: bool = False,
) -> None:
    """Measure a denoiser over guidance scales, intervals and evaluations. Finished points are kept.

    Args:
        name: Name of the sweep; the same name continues it.
        variant: Name of the denoiser in the parameters; it is trained only if the cache does not have it.
        guidance: Classifier-free guidance, or a weaker model as the guide.
        guide: Folder of the weaker model's training output, for autoguidance.
        scales: Guidance scales; 1 is no guidance.
        intervals: Where guidance acts on each part's own time; 0 is noise and 1 is data.
        evaluations: Network evaluations an image; empty for the experiment's.
        parts: The velocities that the scale is varied for.
        samples: Images a point; empty for evaluate.final_samples.
        preset: The experiment: the current params.yaml, or a preset.
        dry_run: Only list the points.
    """

    def plan(point: Point) -> Rows:
        params = parse_params(point.values)
        sampler, denoiser = params.evaluate.sampler, params.variants[variant]
        require_parts(guidance, parts, variant, denoiser, "parts")
        require_fixed_steps(["evaluations"] if evaluations else [], denoiser, sampler.solver)
        counts = evaluations or [sampler.evaluations]
        varied = ("texture", "semantic") if parts == "both" else (parts,)
        rows = []
        for count, interval, scale in product(counts, intervals, scales):
            guided = {part: {"scale": scale, "interval": interval} for part in varied}
            words = f"scale {scale} in {interval} with {count} evaluations"
            _check(point, {"evaluations": count, **guided}, words)
            rows.append({"scale": scale, "interval": str(interval), "evaluations": count})
        return rows

    command = ["guidance-curve", variant, "--guidance", guidance, "--parts", parts, "--scales", *map(repr, scales)]
    command += ["--intervals", *(",".join(map(repr, interval)) for interval in intervals)]
    command += ["--guide", str((Path.cwd() / guide).resolve())] if guide else []
    command += ["--evaluations", *map(str, evaluations)] if evaluations else []
    changes = {"evaluate.sampler.guidance": guidance, "evaluate.sampler.guide": guide}
    settings = ("scale", "interval_from", "interval_to", "evaluations")
    _measure(_Study(name, variant, preset, command, "curve", settings, changes, plan), samples, dry_run)


@flow(name="path sweep", flow_run_name="{name}", on_cancellation=[cancel], persist_result=False)
def path_sweep(
    name: Name = "paths",
    variant: str = "any_order",
    offsets: list[Offset] = [],
    corners: list[Fraction] = [0.0, 0.5, 1.0],
    samples: Samples | None = None,
    preset: Preset = CURRENT,
    confirm: bool = False,
    dry_run: bool = False,
) -> None:
    """Measure a denoiser of any order along offsets, or over the corner of its path as a map. Finished points are kept.

    A training along one path alone can rank paths differently: `confirm` trains the best two for themselves.

    Args:
        name: Name of the sweep; the same name continues it.
        variant: Name of the denoiser in the parameters, one with independent times; trained only if it is not cached.
        offsets: Offsets by which semantics lead; empty measures corners.
        corners: Times of texture and of semantics; every pair of them is the corner of a path of two straight pieces.
        samples: Images a point; empty for evaluate.final_samples.
        preset: The experiment: the current params.yaml, or a preset.
        confirm: Then train the best two paths, each for itself, as the sweep NAME-confirm.
        dry_run: Only list the points.
    """

    def plan(point: Point) -> Rows:
        times = point.values["variants"][variant].get("times", {"kind": "global"})
        if times["kind"] != "independent":
            raise ConfigError(
                f"variant {variant} is trained with times of kind {times['kind']}; name one with independent times"
            )
        for offset in offsets:
            _check(point, {"delta_t": offset, "path": None}, f"offset {offset}")
        paths = [] if offsets else corner_paths(corners)
        for path in paths:
            _check(point, {"delta_t": None, "path": path}, f"path {path}")
        return [{"delta_t": offset} for offset in offsets] or [dict(zip(settings, path[1], strict=True)) for path in paths]

    kind, times = ("offsets", offsets) if offsets else ("corners", corners)
    settings = ("delta_t",) if offsets else ("t_tex", "t_sem")
    command = ["path-curve", variant, f"--{kind}", *map(repr, times)]
    rows = _measure(_Study(name, variant, preset, command, kind, settings, {}, plan), samples, dry_run)
    if len(rows) > 1:
        confirmation = Confirmation.of(variant, rows)
        get_run_logger().info("to confirm the best two paths, as %s: %s", WARNING, confirmation.command)
        if confirm:
            run_sweep(Sweep(f"{name}-confirm", preset, confirmation.space, dry_run=False))


def _measure(study: _Study, samples: int | None, dry_run: bool) -> Rows:
    """Train the denoiser unless it is cached, measure the study, and show it here and in MLflow; return its table."""
    project, logger = Path.cwd(), get_run_logger()
    journal.record(project, str(flow_run.id))
    commit = git.base_commit(project)
    code = pipeline_code(project)
    (point,) = plan_points(base_values(study.preset, project), Space([study.variant], {}, [], study.changes), code, project)
    planned = study.plan(point)
    description = f"{len(planned)} points of {study.variant}"
    create_table_artifact(planned, key=artifact_key(study.name, "plan"), description=description)
    logger.info("%s", description)
    if dry_run:
        return []
    out = project / SWEEPS / study.name
    options = ["--samples", str(samples)] if samples else []
    with point_place(project, point.key, commit, point.values, logger.info, point.inputs) as place:
        compute(place, [f"train@{study.variant}", "reference"], point.key)
        with machine.slot(limits.slots, logger.info) as slot:
            place.on(slot).sfd(*study.command, *options, "--out", str(out))
    return _show(Place.of(project, f"sweep-{study.name}", logger.info), study, point, out)


def _check(point: Point, changes: Mapping[str, Any], words: str) -> None:
    """Raise `ConfigError` unless the denoiser can be sampled with these changes of the sampler."""
    evaluate = point.values["evaluate"] | {"sampler": point.values["evaluate"]["sampler"] | dict(changes)}
    parse_params(dict(point.values) | {"evaluate": evaluate}, source=words)


def _show(place: Place, study: _Study, point: Point, out: Path) -> Rows:
    files = [out / f"{study.file}.csv", out / f"{study.file}.png"]
    with files[0].open(newline="") as file:
        rows: Rows = list(csv.DictReader(file))
    create_table_artifact(rows, key=artifact_key(study.name, "table"), description=f"{study.file} of {study.variant}")
    show_picture(files[1], artifact_key(study.name, "figure"))
    points = [_point(study, row) for row in rows]
    place.report("\n".join(send_to_mlflow(place, study.name, points, files, point.values).where))
    return rows


def _point(study: _Study, row: Mapping[str, str]) -> SweepPoint:
    told = [key for key in ("guidance", "samples", "sampler") if key in row]
    settings = {key: row[key] for key in (*study.settings, *told)}
    numbers = {key: float(value) for key, value in row.items() if number_name(key) is not None}
    name = "-".join([study.variant, *(f"{key}-{NOT_IN_NAMES.sub('_', value).strip('_')}" for key, value in settings.items())])
    return SweepPoint(name, Path(row["file"]).stem, {"variant": study.variant, **settings}, numbers, int(row["step"]), "")
