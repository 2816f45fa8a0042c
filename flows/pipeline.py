"""`reproduce`: the whole pipeline of this clone, a stage a task, from and to the remote."""

from collections.abc import Mapping
from dataclasses import replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows import limits
from flows.artifacts import Progress, artifact_key, show_samples
from flows.point import linked, require_remote, track
from sfd_core.experiment.inputs import require_inputs
from sfd_core.experiment.params import Params, load_params
from sfd_core.host import machine
from sfd_core.host.paths import REPORT, read_json, stage_dir
from sfd_core.workspace import journal
from sfd_core.workspace.dvc import LOGS, Place, stages_run
from sfd_core.workspace.places import look_at_inputs

STAGES_AT_ONCE = 16
"""Threads; the machine's slots limit how many of them compute."""
_RUNNER: Any = ThreadPoolTaskRunner(max_workers=STAGES_AT_ONCE)


@flow(name="reproduce", task_runner=_RUNNER, persist_result=False)
def reproduce(pull: bool = True, push_results: bool = True) -> None:
    """Bring all results of params.yaml up to date in this clone: `dvc repro`, a stage a task.

    Args:
        pull: Download what the remote has instead of computing it.
        push_results: Send results and the run-cache to the remote. Without a remote both do nothing.
    """
    project = Path.cwd()
    journal.record(project, str(flow_run.id))
    params = load_params(project / "params.yaml")
    require_inputs(params, project)
    place = linked(Place.of(project, "reproduce", get_run_logger().info))
    pull = pull and place.has_remote
    if pull:
        require_remote(place)
    try:
        look_at_inputs(place)
        _run_stages(place, place.stage_graph(), pull)
    except BaseException:
        place.stop.set()
        raise
    track(project, place)
    if place.has_remote and push_results:
        push(place)
    _show(project, params)


@task(cache_policy=NO_CACHE, task_run_name="{name}")
def stage(name: str, place: Place, pull: bool) -> bool:
    """Bring one stage up to date, whose inputs are; return whether it ran and was not restored."""
    logger, read = get_run_logger(), place.report

    def report(line: str) -> None:
        logger.info(line)
        read(line)

    place = replace(place, log=place.folder / LOGS / f"reproduce-{name.replace('@', '-')}.log", report=report)

    def slots() -> int:
        place.require_running(name)
        return limits.slots()

    with machine.slot(slots, place.report) as slot:
        ran = bool(stages_run(place.on(slot).dvc("repro", "--single-item", *(["--pull"] if pull else []), name)))
    kind, _, variant = name.partition("@")
    if kind == "evaluate":
        show_samples(place.folder / stage_dir(kind, variant), artifact_key("samples", variant))
    return ran


@task(cache_policy=NO_CACHE)
def push(place: Place) -> None:
    """Send results and the run-cache to the remote, so that no machine computes them again."""
    place.dvc("push", "--run-cache")


def _run_stages(place: Place, graph: Mapping[str, set[str]], pull: bool) -> None:
    """Run every stage as soon as its inputs exist; raise the first failure once no other stage can run."""
    progress = Progress("reproduce", "stages of the pipeline", len(graph))
    place = replace(place, report=progress.read)
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
        except Exception as error:  # noqa: BLE001 - results of the other stages are shown all the same
            failures.append(error)
        progress.finish(number)
    get_run_logger().info("%d stages, ran: %s", len(futures), ", ".join(ran) or "none, all were up to date or cached")
    if failures:
        create_markdown_artifact(f"# reproduce failed\n\n```\n{failures[0]}\n```\n", key="reproduce-failure")
        raise failures[0]


def _show(project: Path, params: Params) -> None:
    """Publish the result table and a link to the report."""
    found = {name: read_json(project / stage_dir("evaluate", name) / "metrics.json") for name in params.active}
    rows = [{"variant": name, **numbers} for name, numbers in found.items() if numbers]
    create_table_artifact(rows, key="results", description=params.report.title)
    report = project / REPORT / "index.html"
    create_link_artifact(report.as_uri(), key="report", link_text="report/index.html on the worker's machine")
