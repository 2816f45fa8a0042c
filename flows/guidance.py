"""The guidance sweep: scales, intervals and evaluations of a trained denoiser, measured by `sfd guidance-curve`."""

import csv
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
from flows.sweep import Name, Preset
from sfd_core.experiment.code import pipeline_code
from sfd_core.experiment.grid import CURRENT, Point, Space, base_values, plan_points
from sfd_core.experiment.params import Fraction, NonNegative, Positive, parse_params
from sfd_core.host import machine
from sfd_core.tracking.comparison import SWEEPS, send_to_mlflow
from sfd_core.tracking.sweep import SweepPoint
from sfd_core.workspace import git, journal
from sfd_core.workspace.dvc import Place
from sfd_core.workspace.experiments import point_place

Interval = Annotated[list[Fraction], Field(min_length=2, max_length=2)]
Parts = Literal["both", "texture", "semantic"]
SETTINGS = ("scale", "interval_from", "interval_to", "evaluations")


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
    samples: Positive | None = None,
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
    project, logger = Path.cwd(), get_run_logger()
    with journal.recorded(project, str(flow_run.id)):
        commit = git.base_commit(project)
        code = pipeline_code(project)
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
        with point_place(project, point.key, commit, point.values, logger.info) as place:
            compute(place, [f"train@{variant}", "reference"], point.key)
            with machine.slot(limits.slots, logger.info) as slot:
                place.on(slot).sfd("guidance-curve", variant, *options, "--out", str(out))
        _show(Place.of(project, f"sweep-{name}", logger.info), name, point, out)


def _check(
    point: Point, scales: list[float], intervals: list[list[float]], evaluations: list[int], parts: Parts
) -> list[dict[str, Any]]:
    """Return all combinations, each checked as the sampler of an experiment. Raises `ConfigError` for an impossible one."""
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


def _show(place: Place, name: str, point: Point, out: Path) -> None:
    files = [out / "curve.csv", out / "curve.png"]
    with files[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    create_table_artifact(rows, key=artifact_key(name, "table"), description=f"guidance of {point.variant}")
    show_picture(files[1], artifact_key(name, "figure"))
    points = [_point(point.variant, row) for row in rows]
    place.report("\n".join(send_to_mlflow(place, name, points, files, point.values).where))


def _point(variant: str, row: dict[str, str]) -> SweepPoint:
    settings = {"variant": variant, **{key: row[key] for key in SETTINGS}}
    numbers = {
        key: float(value) for key, value in row.items() if key == "fid" or key.partition("_")[0] in {"fd", "kid", "is", "sfid"}
    }
    words = "-".join(f"{key}-{row[key]}" for key in SETTINGS)
    return SweepPoint(f"{variant}-{words}", Path(row["file"]).stem, settings, numbers, int(row["step"]), "")
