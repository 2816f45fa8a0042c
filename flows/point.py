"""The flow of one point: its worktree, `dvc repro`, its runs in MLflow, its bytes in the remote. Any worker runs any point."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import Artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows import limits
from flows.artifacts import Progress, page_of, show_samples
from sfd_core.experiment.pruning import Judge, Pruned, read_losses
from sfd_core.host import machine
from sfd_core.host.errors import BusyError
from sfd_core.host.locks import locked
from sfd_core.host.paths import STATE, read_json, stage_dir
from sfd_core.host.settings import Settings
from sfd_core.tracking.live import history_key
from sfd_core.tracking.project import evaluation_key
from sfd_core.tracking.runs import MEASURED_BY
from sfd_core.workspace import git, journal
from sfd_core.workspace.dvc import Place, ProgramError, locked_stages, stages_run
from sfd_core.workspace.experiments import point_place

TRACKING_LOCK = STATE / "points-tracking.lock"
"""Points that share a VAE would otherwise make its run in MLflow twice."""
NETWORK_RETRIES = [5.0, 20.0, 60.0]
"""Seconds before each retry of a step that only the network can fail."""
RECORD_TYPE = "point"
BUSY_SECONDS = 30.0
STAGES_OF_A_POINT = 11


@flow(name="point", persist_result=False)
def point(
    key: str,
    commit: str,
    values: dict[str, Any],
    targets: list[str],
    finished: str | None = None,
    highest_losses: dict[int, float] | None = None,
    inputs: dict[str, dict[str, str]] | None = None,
) -> State[Any] | None:
    """Compute one point of a sweep, or restore it from the cache. Sweeps start these runs.

    Args:
        key: Hash of parameters and code, the name of its folder.
        commit: The code to run; a clone without it asks its git remotes.
        values: All parameters.
        targets: DVC stages to bring up to date.
        finished: Lock file of a finished point: nothing is computed, its run is sent to MLflow.
        highest_losses: Step -> validation loss of texture above which the training stops, its checkpoint kept.
        inputs: Hashes of the files that the sweep found at the paths of the values; other files here are refused.
    """
    project, started, log, judge = Path.cwd(), time.monotonic(), get_run_logger().info, Judge(highest_losses or {})
    state: State[Any] | None = None

    def report(line: str) -> None:
        log(line)
        judge.read(line)

    journal.record(project, str(flow_run.id))
    git.require_commit(project, commit)
    try:
        with point_place(project, key, commit, values, report, inputs) as made:
            place = linked(made)
            if finished is not None:
                restore(place, targets, finished)
                track(project, place)
                return None
            ran = compute(place, targets, key)
            judge.require_level()
            show_samples(place.folder / stage_dir("evaluate", values["active"][0]), f"samples-{key}")
            track(project, place)
            record = _record(place.folder, values, ran, started)
    except Pruned as behind:  # outside of the block, which would delete the folder with the checkpoint
        kept = f"worker {machine.worker_name()} keeps its checkpoint, from which a sweep with these values goes on"
        record = {"pruned": f"{behind}; {kept}", "validation": judge.losses}
        state = Completed(name="Pruned", message=record["pruned"])
    Artifact(type=RECORD_TYPE, key=record_key(key, targets), data=record).create()
    return state


def linked(place: Place) -> Place:
    """Return a place whose runs in MLflow link to this flow run."""
    return replace(place, environment={**place.environment, Settings.variable("flow_run"): page_of(flow_run.id)})


def compute(place: Place, targets: Sequence[str], key: str) -> list[str]:
    """Reproduce in a free slot of this machine and return the stages that ran; wait while another process trains the same."""
    while True:
        with suppress(BusyError), machine.slot(limits.slots, place.report) as slot:
            return reproduce(place.on(slot), targets, key)
        place.report(f"another process runs a training that this point shares; trying again in {BUSY_SECONDS:.0f} s")
        time.sleep(BUSY_SECONDS)


@task(cache_policy=NO_CACHE, retries=len(NETWORK_RETRIES), retry_delay_seconds=NETWORK_RETRIES)
def require_remote(place: Place) -> None:
    """Fail before anything is computed if the remote cannot be used."""
    place.require_remote()


@task(cache_policy=NO_CACHE)
def reproduce(place: Place, targets: Sequence[str], key: str) -> list[str]:
    """Run `dvc repro` and return the stages that ran; all others came from the cache, or the remote; none after `Pruned`.

    What the remote lacks is sent to it in the same process, so that no machine computes it again.
    """
    progress = Progress(f"progress-{key}", " ".join(targets), STAGES_OF_A_POINT)
    seen: set[str] = set()

    def report(line: str) -> None:
        place.report(line)
        progress.read(line)
        if line.startswith("Running stage '"):
            progress.finish(len(seen))
        if line.startswith(("Stage '", "Running stage '")):
            seen.add(line.split("'")[1])

    reporting = replace(place, report=report)
    push = ["push", "--run-cache", "--with-deps", *targets] if place.has_remote else []
    try:
        ran = stages_run(reporting.dvc("repro", *(["--pull"] if push else []), *targets, then=push))
    except Pruned:  # no failure: the flow tells it
        return []
    progress.finish(STAGES_OF_A_POINT)
    return ran


@task(cache_policy=NO_CACHE)
def restore(place: Place, targets: Sequence[str], lock: str) -> None:
    """Restore the outputs of a finished point."""
    (place.folder / "dvc.lock").write_text(lock)
    place.restore("--with-deps", *targets)


@task(cache_policy=NO_CACHE)
def track(project: Path, place: Place) -> None:
    """Send curves, pictures and models to MLflow; a later sweep sends what it did not accept."""
    try:
        with locked(project / TRACKING_LOCK):
            place.sfd("track", "--strict")
    except ProgramError as error:
        get_run_logger().warning("not in MLflow: %s", error)


def record_key(key: str, targets: Sequence[str]) -> str:
    """Return the key of the Prefect artifact that holds the record of a point, or of the stages it shares with others."""
    return f"{'point' if any(target.startswith('evaluate@') for target in targets) else 'shared'}-{key}"


def _record(folder: Path, values: dict[str, Any], ran: list[str], started: float) -> dict[str, Any]:
    """Return what the sweep keeps of a point: its lock, its numbers, its cost."""
    variant = values["active"][0]
    train, evaluate = (folder / stage_dir(stage, variant) for stage in ("train", "evaluate"))
    return {
        "params": (folder / "params.yaml").read_text(),
        "lock": (folder / "dvc.lock").read_text(),
        "numbers": read_json(evaluate / "metrics.json"),
        "measured": _measured(evaluate),
        "training": read_json(train / "metrics.json"),
        "run_key": history_key(history) if (history := train / "history.csv").is_file() else "",
        "evaluation": evaluation_key(evaluate),
        "data": _hashes(folder),
        "ran": ran,
        "validation": read_losses(train / "validation.csv"),
        "flow_run": page_of(flow_run.id),
        "seconds": round(time.monotonic() - started, 1),
        "worker": machine.worker_name(),
    }


def _measured(evaluate: Path) -> dict[str, dict[str, Any]]:
    """Return, by number, what of its protocol must be equal for two of them to compare."""
    final = read_json(evaluate / "numbers.json").get("final", {})
    return {name: {key: number["protocol"][key] for key in MEASURED_BY} for name, number in final.items()}


def _hashes(folder: Path) -> dict[str, str]:
    """Return the DVC hash of every output of the pipeline."""
    return {out["path"]: out["md5"] for entry in locked_stages(folder).values() for out in entry.get("outs", [])}
