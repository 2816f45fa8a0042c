"""The guidance sweep: scales, intervals and evaluations of a trained denoiser, measured by `sfd guidance-curve`."""

import csv
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.runtime import flow_run
from pydantic import Field

from flows import limits
from flows.comparison import SWEEPS, artifact_key, data_url, refresh_dashboard, send_to_mlflow, sweep_place
from flows.point import LOGS, fetch, lay_out, reproduce
from flows.sweep import Name, Preset
from sfd_core.experiment.code import PACKAGE, pipeline_code
from sfd_core.experiment.grid import CURRENT, Point, Space, base_values, plan_points
from sfd_core.experiment.params import Fraction, NonNegative, Positive, parse_params
from sfd_core.host import machine
from sfd_core.tracking.sweep import SweepPoint
from sfd_core.workspace import git, journal
from sfd_core.workspace.programs import Place, environment, remote_of

Interval = Annotated[list[Fraction], Field(min_length=2, max_length=2)]
Parts = Literal["both", "texture", "semantic"]
SETTINGS = ("scale", "interval_from", "interval_to", "evaluations")


@flow(name="guidance sweep", flow_run_name="{name}", persist_result=False)
def guidance_sweep(
    name: Name = "guidance",
    variant: str = "sfd",
    guidance: Literal["cfg", "autoguidance"] = "cfg",
    guide: str | None = None,
    scales: Annotated[list[NonNegative], Field(min_length=1)] = [1.0, 1.25, 1.5, 2.0],
    intervals: Annotated[list[Interval], Field(min_length=1)] = [[0.0, 1.0]],
    evaluations: list[Positive] = [],
    parts: Parts = "both",
    samples: Positive | None = None,
    preset: Preset = CURRENT,
    dry_run: bool = False,
) -> None:
    """Measure a denoiser over guidance scales, intervals and evaluations. Points that were measured are kept.

    Args:
        name: What the sweep is called; the same name continues it.
        variant: The denoiser, by its name in the parameters; it is taken from the cache, and trained only where it is not.
        guidance: Classifier-free guidance, or a weaker model as the guide.
        guide: Folder of the weaker model's training output, for autoguidance.
        scales: Guidance scales; 1 is none.
        intervals: Where guidance acts on each part's own time, 0 is noise and 1 is data.
        evaluations: Network evaluations an image; none for the experiment's.
        parts: The velocities that the scale is varied for.
        samples: Images a point; empty for evaluate.final_samples.
        preset: The experiment: params.yaml as it is, or a preset.
        dry_run: Only tell the points.
    """
    project, logger = Path.cwd(), get_run_logger()
    with journal.recorded(project, str(flow_run.id)):
        commit = git.base_commit(project)
        code = pipeline_code(project / PACKAGE)
        sampler = {"evaluate.sampler.guidance": guidance, "evaluate.sampler.guide": guide}
        (point,) = plan_points(base_values(preset, project), Space([variant], {}, [], sampler), code, project)
        planned = _check(point, scales, intervals, evaluations, parts)
        create_table_artifact(planned, key=artifact_key(name, "plan"), description=f"{len(planned)} points of {variant}")
        logger.info("%d points of %s", len(planned), variant)
        if dry_run:
            return
        out = project / SWEEPS / name
        options = ["--guidance", guidance, "--parts", parts, "--scales", *map(repr, scales)]
        options += ["--intervals", *(",".join(map(repr, interval)) for interval in intervals)]
        options += ["--guide", str((project / guide).resolve())] if guide else []
        options += ["--evaluations", *map(str, evaluations)] if evaluations else []
        options += ["--samples", str(samples)] if samples else []
        with git.worktree(project, point.key, commit) as (folder, held):
            lay_out(project, folder, dict(point.values))
            place = Place(folder, project / LOGS / f"{point.key}.log", environment(project), (held,), logger.info)
            if remote_of(project):
                fetch(place)
            with machine.slot(limits.places, logger.info) as slot:
                place = Place(folder, place.log, {**place.environment, **slot.environment}, (held, slot.held), logger.info)
                reproduce(place, [f"train@{variant}", "reference"], point.key, pull=remote_of(project) is not None)
                place.sfd("guidance-curve", variant, *options, "--out", str(out))
            git.forget_worktree(project, folder)
        _show(project, name, variant, point.values, out)


def _check(
    point: Point, scales: list[float], intervals: list[list[float]], evaluations: list[int], parts: Parts
) -> list[dict[str, Any]]:
    """Return all combinations, each checked as the sampler of an experiment; raise `ConfigError` for one that cannot be."""
    counts = evaluations or [point.values["evaluate"]["sampler"]["evaluations"]]
    varied = ("texture", "semantic") if parts == "both" else (parts,)
    rows = []
    for count, interval, scale in product(counts, intervals, scales):
        sampler = point.values["evaluate"]["sampler"] | {"evaluations": count}
        sampler |= {part: {"scale": scale, "interval": interval} for part in varied}
        values = dict(point.values) | {"evaluate": point.values["evaluate"] | {"sampler": sampler}}
        parse_params(values, source=f"scale {scale} in {interval} with {count} evaluations")
        rows.append({"scale": scale, "interval": str(interval), "evaluations": count})
    return rows


def _show(project: Path, name: str, variant: str, values: Mapping[str, Any], out: Path) -> None:
    with (out / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    create_table_artifact(rows, key=artifact_key(name, "table"), description=f"guidance of {variant}")
    create_image_artifact(data_url(out / "curve.png"), key=artifact_key(name, "figure"))
    files = [out / "curve.csv", out / "curve.png"]
    where = send_to_mlflow(project, name, [_point(variant, row) for row in rows], files)
    if link := refresh_dashboard(sweep_place(project, name, get_run_logger().info), values):
        where.append(link)
    get_run_logger().info("\n".join(where))


def _point(variant: str, row: dict[str, str]) -> SweepPoint:
    settings = {"variant": variant, **{key: row[key] for key in SETTINGS}}
    numbers = {
        key: float(value) for key, value in row.items() if key == "fid" or key.partition("_")[0] in {"fd", "kid", "is", "sfid"}
    }
    words = "-".join(f"{key}-{row[key]}" for key in SETTINGS)
    return SweepPoint(f"{variant}-{words}", Path(row["file"]).stem, settings, numbers, int(row["step"]), "")
