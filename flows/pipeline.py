"""`reproduce`: the whole pipeline of this clone, a stage a task, with what the remote has and to the remote."""

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import yaml
from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows import limits
from flows.comparison import data_url
from flows.point import LOGS, fetch, push, track
from sfd_core.experiment.inputs import require_inputs
from sfd_core.experiment.params import Params, load_params
from sfd_core.host import machine
from sfd_core.host.paths import REPORT, stage_dir
from sfd_core.workspace import journal
from sfd_core.workspace.programs import Place, ProgramError, environment, remote_of, stages_run

STAGES_AT_ONCE = 16
"""Threads; places of the machine say how many of them compute."""
_RUNNER: Any = ThreadPoolTaskRunner(max_workers=STAGES_AT_ONCE)


@flow(name="reproduce", task_runner=_RUNNER, persist_result=False)
def reproduce(pull: bool = True, push_results: bool = True) -> None:
    """Bring everything that params.yaml asks for up to date in this clone: `dvc repro`, a stage a task.

    Args:
        pull: Take what the remote has instead of computing it.
        push_results: Send results and the run-cache to the remote. Without a remote both do nothing.
    """
    project, logger = Path.cwd(), get_run_logger()
    with journal.recorded(project, str(flow_run.id)):
        params = load_params(project / "params.yaml")
        require_inputs(params, project)
        remote, stop = remote_of(project), threading.Event()
        place = Place(project, project / LOGS / "reproduce.log", environment(project), (), logger.info, stop)
        if remote and pull:
            fetch(place)
        graph = stage_graph(yaml.safe_load((project / "dvc.yaml").read_text())["stages"], params.active)
        try:
            _run_stages(place, graph, pull=bool(remote and pull))
        except BaseException:
            stop.set()
            raise
        track(project, place)
        if remote and push_results:
            push(place, [])
        _show(project, params)


@task(cache_policy=NO_CACHE, task_run_name="{name}")
def stage(name: str, place: Place, pull: bool) -> bool:
    """Bring one stage up to date whose inputs are; return whether it ran, not restored."""
    logger = get_run_logger()

    def places() -> int:
        if place.stop.is_set():
            raise ProgramError(f"{name} was not started: the flow has ended")
        return limits.places()

    with machine.slot(places, logger.info) as slot:
        log = place.log.with_name(f"reproduce-{name.replace('@', '-')}.log")
        there = Place(place.folder, log, {**place.environment, **slot.environment}, (slot.held,), logger.info, place.stop)
        return bool(stages_run(there.dvc("repro", "--single-item", *(["--pull"] if pull else []), name)))


def stage_graph(pipeline: Mapping[str, Any], active: list[str]) -> dict[str, set[str]]:
    """Return, for every stage of dvc.yaml with its variants, the stages whose outputs it reads."""
    stages = {name: entry for raw, entry in pipeline.items() for name, entry in _expanded(raw, entry, active).items()}
    outs = {
        name: [_path(out) for kind in ("outs", "metrics", "plots") for out in entry.get(kind, [])]
        for name, entry in stages.items()
    }
    return {
        name: {
            other
            for other in stages
            if other != name and any(_overlap(dep, out) for dep in entry.get("deps", []) for out in outs[other])
        }
        for name, entry in stages.items()
    }


def _run_stages(place: Place, graph: Mapping[str, set[str]], pull: bool) -> None:
    """Run all stages, each as soon as what it reads is there; raise the first failure after all that can run have."""
    progress = cast("UUID", create_progress_artifact(0.0, key="reproduce", description="stages of the pipeline"))
    futures: dict[str, PrefectFuture[Any]] = {}
    for name in TopologicalSorter(graph).static_order():
        before = [futures[other] for other in sorted(graph[name])]
        futures[name] = stage.submit(name=name, place=place, pull=pull, wait_for=before, return_state=False)
    failures: list[Exception] = []
    ran = []
    for number, (name, future) in enumerate(futures.items(), start=1):
        try:
            if future.result():
                ran.append(name)
        except Exception as error:  # noqa: BLE001 - what others computed is shown all the same
            failures.append(error)
        update_progress_artifact(progress, 100.0 * number / len(futures))
    get_run_logger().info("%d stages, ran: %s", len(futures), ", ".join(ran) or "none, all were up to date or cached")
    if failures:
        create_markdown_artifact(f"# reproduce failed\n\n```\n{failures[0]}\n```\n", key="reproduce-failure")
        raise failures[0]


def _show(project: Path, params: Params) -> None:
    """Publish the result table, the report's address and the last variant's samples."""
    rows = []
    for name in params.active:
        with suppress(OSError, ValueError):
            numbers = json.loads((project / stage_dir("evaluate", name) / "metrics.json").read_text())
            rows.append({"variant": name, **numbers})
    create_table_artifact(rows, key="results", description=params.report.title)
    report = project / REPORT / "index.html"
    create_link_artifact(report.as_uri(), key="report", link_text="report/index.html on the worker's machine")
    pictures = sorted((project / stage_dir("evaluate", params.active[-1]) / "grids").glob("*.png"))
    if pictures:
        create_image_artifact(data_url(pictures[-1]), key="samples", description=f"{params.active[-1]}, last snapshot")


def _expanded(name: str, entry: Mapping[str, Any], active: list[str]) -> dict[str, Any]:
    if "matrix" not in entry:
        return {name: entry}
    text = json.dumps(dict(entry))
    return {f"{name}@{variant}": json.loads(text.replace("${item.variant}", variant)) for variant in active}


def _path(out: Any) -> str:
    return out if isinstance(out, str) else str(next(iter(out)))


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")
