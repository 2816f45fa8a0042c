"""Sweeps: points planned and checked, shared stages computed once, every point by whichever worker is free, one comparison."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.runtime import flow_run
from pydantic import Field

from flows import comparison
from flows.comparison import Row
from flows.dispatch import Dispatcher, Outcome, cancel_points
from flows.point import fetch
from sfd_core.experiment.code import PACKAGE, pipeline_code
from sfd_core.experiment.estimates import outlook, project_rates
from sfd_core.experiment.grid import CURRENT, SHARED_TARGETS, Point, Space, base_values, plan_points, shared_groups
from sfd_core.experiment.params import Fraction, Positive, Seed
from sfd_core.experiment.presets import PRESETS
from sfd_core.experiment.sizes import SizeName
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.settings import Settings
from sfd_core.tracking.registry import CHAMPION
from sfd_core.workspace import git, journal
from sfd_core.workspace.programs import remote_of

POINTS = "points"
"""Where the refs of all finished points are, below refs/sfd."""
_PRESET_NAMES = [CURRENT, *sorted(path.stem for path in PRESETS.glob("*.yaml"))]

Preset = Annotated[str, Field(json_schema_extra={"enum": list(_PRESET_NAMES)})]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
VariantNames = list[str]
Seeds = list[Seed]


@dataclass(frozen=True)
class Sweep:
    """What is asked for."""

    name: str
    preset: str
    space: Space
    dry_run: bool


def _cancel(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End the points of a sweep that was cancelled."""
    cancel_points(flow_run.id)


@flow(name="sweep", flow_run_name="{name}", on_cancellation=[_cancel], persist_result=False)
def sweep(
    name: Name = "sweep",
    preset: Preset = CURRENT,
    variants: VariantNames = [],
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {},
    seeds: Seeds = [],
    changes: dict[str, Any] = {},
    dry_run: bool = False,
) -> None:
    """Compute every combination of variants, values and seeds; what is finished is not computed again.

    Args:
        name: What the sweep is called: its refs are refs/sfd/NAME/POINT. The same name continues it.
        preset: The experiment that is varied: params.yaml as it is, or a preset.
        variants: Denoisers, by their names in the parameters; none for all that are active.
        grid: Key as nested in params.yaml, or of a variant (delta_t, size, repa.weight), and all its values.
        seeds: Seeds of training; none for each variant's own.
        changes: Key and the one value that all points have.
        dry_run: Only tell the points, what is finished, and estimated hours and bytes.
    """
    _run(Sweep(name, preset, Space(variants, grid, seeds, changes), dry_run))


@flow(name="offset sweep", flow_run_name="{name}", on_cancellation=[_cancel], persist_result=False)
def offset_sweep(
    name: Name = "offsets",
    delta_t: Annotated[list[Fraction], Field(min_length=1)] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0],
    variants: Annotated[VariantNames, Field(min_length=1)] = ["sfd"],
    seeds: Seeds = [],
    preset: Preset = CURRENT,
    steps: Positive | None = None,
    dry_run: bool = False,
) -> None:
    """Train and judge a denoiser at every offset by which semantics may lead (SFD, arXiv 2512.04926, ablation of delta_t).

    Args:
        name: What the sweep is called: its refs are refs/sfd/NAME/POINT. The same name continues it.
        delta_t: Offsets of global time, 0 to 1; 0 is synchronous denoising.
        variants: Denoisers with a semantic latent, by their names in the parameters.
        seeds: Seeds of training; none for each variant's own. Two or more give error bars.
        preset: The experiment that is varied: params.yaml as it is, or a preset.
        steps: Steps of training instead of the experiment's.
        dry_run: Only tell the points, what is finished, and estimated hours and bytes.
    """
    _run(Sweep(name, preset, Space(variants, {"delta_t": delta_t}, seeds, _steps(steps)), dry_run))


@flow(name="model-size sweep", flow_run_name="{name}", on_cancellation=[_cancel], persist_result=False)
def size_sweep(
    name: Name = "sizes",
    sizes: Annotated[list[SizeName], Field(min_length=1)] = ["tiny", "S", "B"],
    variants: VariantNames = [],
    seeds: Seeds = [],
    preset: Preset = CURRENT,
    steps: Positive | None = None,
    dry_run: bool = False,
) -> None:
    """Train and judge denoisers of several sizes with one recipe.

    Args:
        name: What the sweep is called: its refs are refs/sfd/NAME/POINT. The same name continues it.
        sizes: Depth, width and heads, by their names in the paper; tiny is the embedded experiment's.
        variants: Denoisers, by their names in the parameters; none for all that are active.
        seeds: Seeds of training; none for each variant's own. Two or more give error bars.
        preset: The experiment that is varied: params.yaml as it is, or a preset.
        steps: Steps of training instead of the experiment's.
        dry_run: Only tell the points, what is finished, and estimated hours and bytes.
    """
    _run(Sweep(name, preset, Space(variants, {"size": sizes}, seeds, _steps(steps)), dry_run))


@flow(name="seeds", flow_run_name="{name}", on_cancellation=[_cancel], persist_result=False)
def seeds_sweep(
    name: Name = "seeds",
    seeds: Annotated[Seeds, Field(min_length=1)] = [0, 1, 2],
    variants: VariantNames = [],
    preset: Preset = CURRENT,
    steps: Positive | None = None,
    dry_run: bool = False,
) -> None:
    """Train and judge every denoiser with several seeds: how much of a difference is chance.

    Args:
        name: What the sweep is called: its refs are refs/sfd/NAME/POINT. The same name continues it.
        seeds: Seeds of training.
        variants: Denoisers, by their names in the parameters; none for all that are active.
        preset: The experiment that is varied: params.yaml as it is, or a preset.
        steps: Steps of training instead of the experiment's.
        dry_run: Only tell the points, what is finished, and estimated hours and bytes.
    """
    _run(Sweep(name, preset, Space(variants, {}, seeds, _steps(steps)), dry_run))


def _run(asked: Sweep) -> None:
    if asked.name in (POINTS, CHAMPION, "latest") or re.fullmatch(r"v\d+", asked.name):
        raise ConfigError(
            f"a sweep cannot be called {asked.name}, which means something else among refs or models; choose another name"
        )
    project, logger = Path.cwd(), get_run_logger()
    with journal.recorded(project, str(flow_run.id)):
        commit = git.base_commit(project)
        points = plan_points(base_values(asked.preset, project), asked.space, pipeline_code(project / PACKAGE), project)
        finished = git.read_records(project, POINTS)
        rows = [Row(point, "finished before", finished[point.key]) for point in points if point.key in finished]
        told = outlook(points, finished, project_rates(project))
        create_table_artifact(told.table, key=comparison.artifact_key(asked.name, "plan"), description=told.words)
        logger.info(told.words)
        if asked.dry_run:
            return
        missing = [point for point in points if point.key not in finished]
        if missing and remote_of(project):
            # a remote that cannot be used is told before any point starts
            fetch(comparison.sweep_place(project, asked.name, logger.info))
        dispatcher = Dispatcher(flow_run.id, commit, logger.info)
        rows += _compute(project, commit, missing, dispatcher)
        _send_missing(project, rows, dispatcher)
        _show(project, asked, _in_order(rows, points))
    failed = [row for row in rows if row.status == "failed"]
    if failed:
        raise DataError(
            f"{len(failed)} of {len(points)} points failed: {', '.join(row.point.name for row in failed)}; the artifact "
            f"{comparison.artifact_key(asked.name, 'summary')} says why, and the same sweep run again computes only these"
        )


def _compute(project: Path, commit: str, missing: Sequence[Point], dispatcher: Dispatcher) -> list[Row]:
    """Have all points computed, those that share stages after these, and return their rows."""
    waiting: dict[str, list[Point]] = {}
    for group in shared_groups(missing):
        if len(group) > 1:
            waiting[group[0].shared] = group
            dispatcher.submit(group[0], SHARED_TARGETS, "shared stages of ")
        else:
            dispatcher.submit(group[0], [group[0].target])
    rows: list[Row] = []
    while ended := dispatcher.ended():
        for targets, outcome in ended:
            if tuple(targets) != SHARED_TARGETS:
                rows.append(_keep(project, commit, outcome))
                continue
            group = waiting.pop(outcome.point.shared)
            if outcome.record is None:
                rows += [Row(point, "failed", {}, f"its shared stages failed: {outcome.message}") for point in group]
                continue
            for point in group:
                dispatcher.submit(point, [point.target])
    return rows


def _send_missing(project: Path, rows: Sequence[Row], dispatcher: Dispatcher) -> None:
    """Have the runs sent that MLflow lacks, of points that finished while it was away or that another store has."""
    lost = comparison.without_run(project, rows)
    for row in lost:
        record = row.record
        lock = git.file_of(project, str(record["commit"]), "dvc.lock")
        dispatcher.submit(row.point, [row.point.target], "run of ", {"lock": lock})
    if lost:
        get_run_logger().info("MLflow lacks %d finished points; they are restored and sent", len(lost))
    while ended := dispatcher.ended():
        for _, outcome in ended:
            if outcome.record is None:
                get_run_logger().warning("%s: not sent to MLflow: %s", outcome.point.name, outcome.message)


def _keep(project: Path, commit: str, outcome: Outcome) -> Row:
    """Make a finished point a commit and a ref, so that it is never computed again."""
    point, logger = outcome.point, get_run_logger()
    if outcome.record is None:
        logger.error("%s failed: %s", point.name, outcome.message)
        return Row(point, "failed", {}, outcome.message)
    record = {key: value for key, value in outcome.record.items() if key not in {"params", "lock"}}
    record = {"point": point.name, "settings": dict(point.settings), "base": commit, **record}
    files = {"params.yaml": outcome.record["params"], "dvc.lock": outcome.record["lock"]}
    made = git.commit_point(project, commit, files, point.name, record)
    git.set_refs(project, {f"{POINTS}/{point.key}": made})
    trained = any(stage.startswith("train@") for stage in record["ran"])
    logger.info(
        "%s: %s in %.0f s by %s", point.name, "computed" if trained else "restored", record["seconds"], record["worker"]
    )
    return Row(point, "computed" if trained else "restored", record | {"commit": made})


def _show(project: Path, asked: Sweep, rows: list[Row]) -> None:
    """Name the points' commits, and publish table, figure, summary and runs."""
    logger = get_run_logger()
    good = [row for row in rows if row.numbers]
    if good:
        git.set_refs(project, {f"{asked.name}/{row.point.name}": row.record["commit"] for row in good})
    if remote := Settings.read().git_remote:
        try:
            for prefix in (POINTS, asked.name):
                git.push_refs(project, remote, prefix)
        except DataError as error:
            logger.warning("refs not sent: %s", error)
    place = comparison.sweep_place(project, asked.name, logger.info)
    files = comparison.write_comparison(project, asked.name, rows, list(asked.space.grid), place)
    where = comparison.send_to_mlflow(
        project, asked.name, comparison.sweep_points(rows), files, comparison.candidate(asked.name, rows)
    )
    if link := comparison.refresh_dashboard(place, rows[0].point.values):
        where.append(f"[comparison of all runs in MLflow]({link})")
    create_table_artifact(
        comparison.table(rows), key=comparison.artifact_key(asked.name, "table"), description=f"sweep {asked.name}"
    )
    create_markdown_artifact(comparison.summary(asked.name, rows, where), key=comparison.artifact_key(asked.name, "summary"))
    for picture in (file for file in files if file.suffix == ".png"):
        create_image_artifact(comparison.data_url(picture), key=comparison.artifact_key(asked.name, "figure"))


def _in_order(rows: Sequence[Row], points: Sequence[Point]) -> list[Row]:
    places = {point.key: place for place, point in enumerate(points)}
    return sorted(rows, key=lambda row: places[row.point.key])


def _steps(steps: int | None) -> dict[str, Any]:
    return {} if steps is None else {"train.optimisation.steps": steps}
