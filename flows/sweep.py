"""Sweeps: points planned and checked, shared stages computed once, every point on any free worker, one comparison."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.runtime import flow_run
from pydantic import Field

from flows.artifacts import artifact_key, show_picture
from flows.dispatch import Dispatcher, Outcome, Request, cancel_points, read_record
from flows.point import require_remote
from sfd_core.experiment.code import pipeline_code
from sfd_core.experiment.estimates import outlook, project_rates
from sfd_core.experiment.grid import (
    CURRENT,
    SHARED_TARGETS,
    Method,
    Point,
    Range,
    Space,
    base_values,
    plan_points,
    shared_groups,
)
from sfd_core.experiment.params import Fraction, Positive, Seed
from sfd_core.experiment.presets import PRESETS
from sfd_core.experiment.pruning import Losses, limits_of, require_comparable, step_behind
from sfd_core.experiment.sizes import SizeName
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.settings import Settings
from sfd_core.tracking.comparison import Comparison, Row
from sfd_core.tracking.registry import CHAMPION
from sfd_core.workspace import git, journal
from sfd_core.workspace.dvc import Place
from sfd_core.workspace.experiments import require_same_sweep

POINTS = "points"
"""Folder of the refs of all finished points, below refs/sfd."""
_PRESET_NAMES = [CURRENT, *sorted(path.stem for path in PRESETS.glob("*.yaml"))]

Preset = Annotated[str, Field(json_schema_extra={"enum": list(_PRESET_NAMES)})]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
VariantNames = list[str]
Seeds = list[Seed]
JobVariables = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """What a person asks for."""

    name: str
    preset: str
    space: Space
    dry_run: bool
    job_variables: Mapping[str, Any] = field(default_factory=dict)


def cancel(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End the points of a sweep that was cancelled."""
    cancel_points(flow_run.id)


@flow(name="sweep", flow_run_name="{name}", on_cancellation=[cancel], persist_result=False)
def sweep(
    name: Name = "sweep",
    preset: Preset = CURRENT,
    variants: VariantNames = [],
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {},
    seeds: Seeds = [],
    changes: dict[str, Any] = {},
    job_variables: JobVariables = {},
    dry_run: bool = False,
) -> None:
    """Compute every combination of variants, values and seeds. Finished points are not computed again.

    Args:
        name: Name of the sweep; its refs are refs/sfd/NAME/POINT. The same name continues it.
        preset: The experiment that is varied: the current params.yaml, or a preset.
        variants: Names of denoisers in the parameters; empty for all active ones. Those that lack a swept value are skipped.
        grid: Keys as nested in params.yaml, or of a variant (delta_t, size, repa.weight), each with a list of values.
        seeds: Seeds of training; empty for each variant's own.
        changes: Keys, each with one value for all points.
        job_variables: Of a work pool, for each point, such as gpus or memory; a pool's page lists its own.
        dry_run: Only list the points, which of them are finished, and estimated hours and bytes.
    """
    run_sweep(Sweep(name, preset, Space(variants, grid, seeds, changes), dry_run, job_variables))


@flow(name="offset sweep", flow_run_name="{name}", on_cancellation=[cancel], persist_result=False)
def offset_sweep(
    name: Name = "offsets",
    delta_t: Annotated[list[Fraction], Field(min_length=1)] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0],
    variants: Annotated[VariantNames, Field(min_length=1)] = ["sfd"],
    seeds: Seeds = [],
    preset: Preset = CURRENT,
    steps: Positive | None = None,
    job_variables: JobVariables = {},
    dry_run: bool = False,
) -> None:
    """Train and evaluate a denoiser at several offsets delta_t (SFD, arXiv 2512.04926, ablation of delta_t).

    Args:
        name: Name of the sweep; its refs are refs/sfd/NAME/POINT. The same name continues it.
        delta_t: Offsets of global time, 0 to 1; 0 is synchronous denoising.
        variants: Names of denoisers with a semantic latent in the parameters.
        seeds: Seeds of training; empty for each variant's own. Two or more give error bars.
        preset: The experiment that is varied: the current params.yaml, or a preset.
        steps: Steps of training instead of the experiment's.
        job_variables: Of a work pool, for each point, such as gpus or memory; a pool's page lists its own.
        dry_run: Only list the points, which of them are finished, and estimated hours and bytes.
    """
    run_sweep(Sweep(name, preset, Space(variants, {"delta_t": delta_t}, seeds, _steps(steps)), dry_run, job_variables))


@flow(name="model-size sweep", flow_run_name="{name}", on_cancellation=[cancel], persist_result=False)
def size_sweep(
    name: Name = "sizes",
    sizes: Annotated[list[SizeName], Field(min_length=1)] = ["tiny", "S", "B"],
    variants: VariantNames = [],
    seeds: Seeds = [],
    preset: Preset = CURRENT,
    steps: Positive | None = None,
    job_variables: JobVariables = {},
    dry_run: bool = False,
) -> None:
    """Train and evaluate denoisers of several sizes with one recipe.

    Args:
        name: Name of the sweep; its refs are refs/sfd/NAME/POINT. The same name continues it.
        sizes: Names of sizes (depth, width, heads) as in the paper; tiny is the embedded experiment's.
        variants: Names of denoisers in the parameters; empty for all active ones.
        seeds: Seeds of training; empty for each variant's own. Two or more give error bars.
        preset: The experiment that is varied: the current params.yaml, or a preset.
        steps: Steps of training instead of the experiment's.
        job_variables: Of a work pool, for each point, such as gpus or memory; a pool's page lists its own.
        dry_run: Only list the points, which of them are finished, and estimated hours and bytes.
    """
    run_sweep(Sweep(name, preset, Space(variants, {"size": sizes}, seeds, _steps(steps)), dry_run, job_variables))


@flow(name="seeds", flow_run_name="{name}", on_cancellation=[cancel], persist_result=False)
def seeds_sweep(
    name: Name = "seeds",
    seeds: Annotated[Seeds, Field(min_length=1)] = [0, 1, 2],
    variants: VariantNames = [],
    preset: Preset = CURRENT,
    steps: Positive | None = None,
    job_variables: JobVariables = {},
    dry_run: bool = False,
) -> None:
    """Train and evaluate denoisers with several seeds: how large is the noise between trainings?

    Args:
        name: Name of the sweep; its refs are refs/sfd/NAME/POINT. The same name continues it.
        seeds: Seeds of training.
        variants: Names of denoisers in the parameters; empty for all active ones.
        preset: The experiment that is varied: the current params.yaml, or a preset.
        steps: Steps of training instead of the experiment's.
        job_variables: Of a work pool, for each point, such as gpus or memory; a pool's page lists its own.
        dry_run: Only list the points, which of them are finished, and estimated hours and bytes.
    """
    run_sweep(Sweep(name, preset, Space(variants, {}, seeds, _steps(steps)), dry_run, job_variables))


@flow(name="search", flow_run_name="{name}", on_cancellation=[cancel], persist_result=False)
def search(
    name: Name = "search",
    variant: str = "sfd",
    ranges: dict[str, Range | Annotated[list[Any], Field(min_length=1)]] = {"delta_t": Range(low=0.0, high=1.0)},
    points: Positive = 12,
    at_once: Positive = 4,
    method: Method = "tpe",
    seed: Seed = 0,
    prune: bool = False,
    changes: dict[str, Any] = {},
    preset: Preset = CURRENT,
    job_variables: JobVariables = {},
    dry_run: bool = False,
) -> None:
    """Train and evaluate a denoiser at values drawn from ranges, in rounds that learn from one another.

    Args:
        name: Name of the search; its refs are refs/sfd/NAME/POINT. The same name continues it.
        variant: Name of the denoiser in the parameters.
        ranges: Keys as nested in params.yaml, or of a variant, each with a range or a list of values.
        points: Points in all.
        at_once: Points a round, computed by all workers at the same time.
        method: near the best points so far (tpe), at random, or spread evenly (a Sobol sequence).
        seed: Seed of the draws; the training has the variant's own.
        prune: Stop a training, its checkpoint kept, whose validation loss of texture at a snapshot is above the median of the
            finished points (four or more). That is not the distance; a sweep with the same values continues the training.
        changes: Keys, each with one value for all points.
        preset: The experiment that is varied: the current params.yaml, or a preset.
        job_variables: Of a work pool, for each point, such as gpus or memory; a pool's page lists its own.
        dry_run: Only list the points of the first round, and estimated hours and bytes.
    """
    from sfd_core.experiment.search import Search  # noqa: PLC0415 - Optuna takes a second

    searching = Search(ranges, method, seed)
    asked = Sweep(name, preset, Space([variant], {}, [], changes), dry_run, job_variables)
    with _at_work(asked) as work:
        rows: list[Row] = []
        while len(rows) < points:
            draws = searching.ask(min(at_once, points - len(rows)))
            found = [work.plan(replace(asked.space, draws=[draw.values])) for draw in draws]
            if prune:
                require_comparable(ranges, found[0][0].values)
            if dry_run:
                work.show_plan([point for planned in found for point in planned])
                return
            drawn = list({point.key: point for planned in found for point in planned}.values())
            fresh = work.compute(drawn, searching.highest_losses() if prune else {})
            by_key = {row.point.key: row for row in fresh}
            for draw, (point,) in zip(draws, found, strict=True):
                row = by_key[point.key]
                rows.append(row)
                searching.tell(draw, Comparison(name, [row]).lowest, row.losses, row.status == "pruned")
            work.show(list({row.point.key: row for row in rows}.values()), list(ranges))
    _require_all(name, rows)


def run_sweep(asked: Sweep) -> None:
    """Compute and show all points of a sweep. Raises `DataError` if one failed."""
    with _at_work(asked) as work:
        points = work.plan(asked.space)
        work.show_plan(points)
        if asked.dry_run:
            return
        rows = work.compute(points)
        work.show(rows, asked.space.keys)
    _require_all(asked.name, rows)


@dataclass(frozen=True)
class _Work:
    """A sweep at work in a clone."""

    asked: Sweep
    project: Path
    commit: str
    code: str
    """Of the pipeline, as it was when the sweep began."""
    place: Place
    dispatcher: Dispatcher

    def plan(self, space: Space) -> list[Point]:
        """Return the checked points of a space. Raises `ConfigError` if the sweep has one of them with other values."""
        values = base_values(self.asked.preset, self.project)
        points = plan_points(values, space, self.code, self.project)
        require_same_sweep(self.project, self.asked.name, points)
        planned = {point.variant for point in points}
        if skipped := [name for name in space.variants or values["active"] if name not in planned]:
            self.place.report(f"skipped, because {' and '.join(space.keys)} cannot vary in them: {', '.join(skipped)}")
        return points

    def show_plan(self, points: Sequence[Point]) -> None:
        """Show which points there are, which of them are finished, and what the others may cost."""
        expected = outlook(points, git.read_records(self.project, POINTS), project_rates(self.project))
        create_table_artifact(expected.table, key=artifact_key(self.asked.name, "plan"), description=expected.words)
        self.place.report(expected.words)

    def compute(self, points: Sequence[Point], highest: Losses = {}) -> list[Row]:
        """Compute the points that are not finished, and return the rows of all.

        Those with a validation loss above `highest` stop early; what was stopped before and would be again is not started.
        """
        finished = git.read_records(self.project, POINTS)
        missing = [point for point in points if point.key not in finished]
        behind = {point.key: row for point in missing if highest and (row := _stopped_before(point, highest))}
        missing = [point for point in missing if point.key not in behind]
        if missing and self.place.has_remote:
            require_remote(self.place)
        computed = behind | {row.point.key: row for row in self._compute(missing, highest)}
        return [computed.get(point.key) or Row(point, "finished before", finished[point.key]) for point in points]

    def _compute(self, missing: Sequence[Point], highest: Losses) -> list[Row]:
        """Compute all points, those that share stages after these, and return their rows."""
        dispatcher, rows = self.dispatcher, list[Row]()
        requests = {point.key: Request(point, [point.target], highest=limits_of(highest, point.values)) for point in missing}
        waiting: dict[str, list[Point]] = {}
        for group in shared_groups(missing):
            if len(group) > 1:
                waiting[group[0].shared] = group
                dispatcher.submit(Request(group[0], SHARED_TARGETS, "shared stages of "))
            else:
                dispatcher.submit(requests[group[0].key])
        while ended := dispatcher.ended():
            for outcome in ended:
                if tuple(outcome.targets) != SHARED_TARGETS:
                    rows.append(_keep(self.project, self.commit, outcome))
                    continue
                for point in waiting.pop(outcome.point.shared):
                    if outcome.record is None:
                        rows.append(Row(point, "failed", {}, f"its shared stages failed: {outcome.message}"))
                    else:
                        dispatcher.submit(requests[point.key])
        return rows

    def show(self, rows: Sequence[Row], over: Sequence[str]) -> None:
        """Name the points' commits, and publish table, figure, summary and runs; what was published before is only shown."""
        name, place = self.asked.name, self.place
        comparison = Comparison(name, rows)
        if comparison.measured:
            git.set_refs(place.folder, {f"{name}/{row.point.name}": row.record["commit"] for row in comparison.measured})
        shown = comparison.shown(place, over)
        if shown is None:
            complete = self._send_missing(comparison) and self._push_refs()
            files = comparison.write(place, over)
            shown = files, comparison.send(place, files, over, complete)
        files, where = shown
        table = [row.columns for row in comparison.rows]
        create_table_artifact(table, key=artifact_key(name, "table"), description=f"sweep {name}")
        create_markdown_artifact(comparison.summary(where), key=artifact_key(name, "summary"))
        for picture in files[1:]:
            show_picture(picture, artifact_key(name, "figure"))

    def _send_missing(self, comparison: Comparison) -> bool:
        """Send the runs of finished points that MLflow lacks, as it was down or is another store; whether it has all now."""
        lost = comparison.without_run(self.place)
        for row in lost or []:
            lock = git.file_of(self.project, str(row.record["commit"]), "dvc.lock")
            self.dispatcher.submit(Request(row.point, [row.point.target], "run of ", lock))
        if lost:
            self.place.report(f"MLflow lacks {len(lost)} finished points; they are restored and sent")
        complete = lost is not None
        while ended := self.dispatcher.ended():
            for outcome in ended:
                if outcome.record is None:
                    complete = False
                    get_run_logger().warning("%s: not sent to MLflow: %s", outcome.point.name, outcome.message)
        return complete

    def _push_refs(self) -> bool:
        """Push the refs of the points to the git remote of the settings, if there is one; whether that worked."""
        remote = Settings.read().git_remote
        try:
            for prefix in (POINTS, self.asked.name) if remote else ():
                git.push_refs(self.project, str(remote), prefix)
        except DataError as error:
            get_run_logger().warning("refs not pushed: %s", error)
            return False
        return True


@contextmanager
def _at_work(asked: Sweep) -> Iterator[_Work]:
    """Prepare the clone for a sweep. Raises `ConfigError` for a name with another meaning."""
    if asked.name in (POINTS, CHAMPION, "latest") or re.fullmatch(r"v\d+", asked.name):
        raise ConfigError(f"the name {asked.name} has another meaning among refs or models; choose another name for the sweep")
    project, log = Path.cwd(), get_run_logger().info
    journal.record(project, str(flow_run.id))
    commit, place = git.base_commit(project), Place.of(project, f"sweep-{asked.name}", log)
    dispatcher = Dispatcher(flow_run.id, commit, log, asked.job_variables)
    yield _Work(asked, project, commit, pipeline_code(project), place, dispatcher)


def _stopped_before(point: Point, highest: Losses) -> Row | None:
    """Return the row of a point that an earlier run of the search stopped, if it is still behind."""
    record = read_record(point, [point.target]) or {}
    row = Row(point, "pruned", record, record.get("pruned", ""))
    return row if row.message and step_behind(row.losses, limits_of(highest, point.values)) is not None else None


def _require_all(name: str, rows: Sequence[Row]) -> None:
    """Raise `DataError` if a point failed."""
    if failed := [row.point.name for row in rows if row.status == "failed"]:
        raise DataError(
            f"{len(failed)} of {len(rows)} points failed: {', '.join(failed)}; the artifact "
            f"{artifact_key(name, 'summary')} says why; run the same sweep again to compute only these"
        )


def _keep(project: Path, commit: str, outcome: Outcome) -> Row:
    """Make a finished point a commit and a ref, so that it is never computed again."""
    point, logger = outcome.point, get_run_logger()
    if outcome.record is None:
        logger.error("%s failed: %s", point.name, outcome.message)
        return Row(point, "failed", {}, outcome.message)
    if outcome.is_pruned:
        logger.info("%s pruned: %s", point.name, outcome.record["pruned"])
        return Row(point, "pruned", outcome.record, outcome.record["pruned"])
    record = {key: value for key, value in outcome.record.items() if key not in {"params", "lock"}}
    record = {"point": point.name, "settings": dict(point.settings), "base": commit, **record}
    files = {"params.yaml": outcome.record["params"], "dvc.lock": outcome.record["lock"]}
    made = git.commit_point(project, commit, files, point.name, record)
    git.set_refs(project, {f"{POINTS}/{point.key}": made})
    status = "computed" if any(stage.startswith("train@") for stage in record["ran"]) else "restored"
    logger.info("%s: %s in %.0f s by %s", point.name, status, record["seconds"], record["worker"])
    return Row(point, status, record | {"commit": made})


def _steps(steps: int | None) -> dict[str, Any]:
    return {} if steps is None else {"train.optimisation.steps": steps}
