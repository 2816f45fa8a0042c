"""The flow of one point: its worktree, `dvc repro`, its runs in MLflow, its bytes in the remote. Any worker takes any point."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
import yaml
from prefect import flow, get_run_logger, task
from prefect.artifacts import Artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows import limits
from sfd_core.experiment.inputs import link_inputs, require_inputs
from sfd_core.experiment.params import parse_params
from sfd_core.host import machine
from sfd_core.host.locks import locked
from sfd_core.host.paths import STATE
from sfd_core.tracking.live import history_key
from sfd_core.tracking.project import evaluation_key
from sfd_core.workspace import git, journal
from sfd_core.workspace.programs import Place, ProgramError, environment, remote_of, stages_run, write_local_config

NETWORK_RETRIES = [5.0, 20.0, 60.0]
"""Seconds before each repetition of a step that only the network can fail."""
LOGS = STATE / "logs"
TRACKING_LOCK = STATE / "points-tracking.lock"
"""Points that share a VAE would otherwise make its run in MLflow twice."""
RECORD_TYPE = "point"
AT_WORK = "is at work on"
"""What a training says that another process holds (`sfd_core.storage.lease`): it is waited for, and then restored."""
BUSY_SECONDS = 30.0
STAGES_OF_A_POINT = 8


@flow(name="point", persist_result=False)
def point(key: str, commit: str, values: dict[str, Any], targets: list[str], finished: dict[str, str] | None = None) -> None:
    """Compute one point of a sweep, or restore it from the cache. Sweeps start these runs; there is no need to by hand.

    Args:
        key: Hash of parameters and code, the name of its folder.
        commit: The code to run; a clone without it asks its git remotes.
        values: All parameters.
        targets: DVC stages to bring up to date.
        finished: Lock file of a finished point: nothing is computed, its run is sent to MLflow.
    """
    project, started = Path.cwd(), time.monotonic()
    logger = get_run_logger()
    with journal.recorded(project, str(flow_run.id)):
        git.require_commit(project, commit)
        with git.worktree(project, key, commit) as (folder, held):
            lay_out(project, folder, values)
            place = Place(folder, project / LOGS / f"{key}.log", environment(project), (held,), logger.info)
            remote = remote_of(project) is not None
            if finished is not None:
                restore(place, targets, finished, pull=remote)
                track(project, place)
            else:
                if remote:
                    fetch(place)
                ran = _compute(place, targets, key, pull=remote)
                track(project, place)
                if remote:
                    push(place, targets)
                record = _record(folder, values, ran, started)
                Artifact(type=RECORD_TYPE, key=record_key(key, targets), data=record).create()
            git.forget_worktree(project, folder)


def _compute(place: Place, targets: Sequence[str], key: str, pull: bool) -> list[str]:
    """Reproduce on a free place of this machine; wait while another process does the same training."""
    while True:
        with machine.slot(limits.places, place.told) as slot:
            held = (*place.held, slot.held)
            computing = Place(place.folder, place.log, {**place.environment, **slot.environment}, held, place.told)
            try:
                return reproduce(computing, targets, key, pull=pull)
            except ProgramError as error:
                if AT_WORK not in str(error):
                    raise
        place.told(f"another process does a training that this point shares; asking again in {BUSY_SECONDS:.0f} s")
        time.sleep(BUSY_SECONDS)


@task(cache_policy=NO_CACHE, retries=len(NETWORK_RETRIES), retry_delay_seconds=NETWORK_RETRIES)
def fetch(place: Place) -> None:
    """Learn from the remote what has been computed anywhere; the bytes come when a stage asks for them."""
    place.pull_run_cache()


@task(cache_policy=NO_CACHE)
def reproduce(place: Place, targets: Sequence[str], key: str, pull: bool) -> list[str]:
    """Run `dvc repro` and return the stages that ran; all others came out of the cache."""
    progress = cast("UUID", create_progress_artifact(0.0, key=f"progress-{key}", description=" ".join(targets)))
    seen: set[str] = set()

    def told(line: str) -> None:
        place.told(line)
        if line.startswith(("Stage '", "Running stage '")):
            seen.add(line.split("'")[1])
            with suppress(httpx.HTTPError):  # a server that is down holds up no training
                update_progress_artifact(progress, min(99.0, 100.0 * (len(seen) - 1) / STAGES_OF_A_POINT))

    watched = Place(place.folder, place.log, place.environment, place.held, told)
    ran = stages_run(watched.dvc("repro", *(["--pull"] if pull else []), *targets))
    update_progress_artifact(progress, 100.0)
    return ran


@task(cache_policy=NO_CACHE)
def restore(place: Place, targets: Sequence[str], finished: Mapping[str, str], pull: bool) -> None:
    """Bring the outputs of a finished point back."""
    (place.folder / "dvc.lock").write_text(finished["lock"])
    place.dvc("pull" if pull else "checkout", "--with-deps", *targets)


@task(cache_policy=NO_CACHE)
def track(project: Path, place: Place) -> None:
    """Send curves, pictures and models to MLflow; what it did not take is sent at the end of a sweep, or by a later one."""
    try:
        with locked(project / TRACKING_LOCK):
            place.sfd("track", "--strict")
    except ProgramError as error:
        get_run_logger().warning("not in MLflow: %s", error)


@task(cache_policy=NO_CACHE, retries=len(NETWORK_RETRIES), retry_delay_seconds=NETWORK_RETRIES)
def push(place: Place, targets: Sequence[str]) -> None:
    """Send results and the run-cache to the remote, so that no machine computes them again."""
    place.dvc("push", "--run-cache", *(["--with-deps", *targets] if targets else []))


def record_key(key: str, targets: Sequence[str]) -> str:
    """Return the key of the Prefect artifact that holds the record of a point, or of the stages it shares with others."""
    return f"{'point' if any(target.startswith('evaluate@') for target in targets) else 'shared'}-{key}"


def lay_out(project: Path, folder: Path, values: dict[str, Any]) -> None:
    """Make a worktree the experiment of `values`, with the project's cache, remotes and inputs."""
    params = parse_params(values)
    require_inputs(params, project)
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    write_local_config(project, folder)
    link_inputs(params, folder, project)


def _record(folder: Path, values: dict[str, Any], ran: list[str], started: float) -> dict[str, Any]:
    """Return what the sweep needs of a point: its lock, its numbers, and what it took."""
    variant = values["active"][0]
    run_key = _run_key(folder / "outputs" / "train" / variant / "history.csv")
    return {
        "params": (folder / "params.yaml").read_text(),
        "lock": (folder / "dvc.lock").read_text(),
        "numbers": _numbers(folder / "outputs" / "evaluate" / variant / "metrics.json"),
        "training": _numbers(folder / "outputs" / "train" / variant / "metrics.json"),
        "run_key": run_key,
        "evaluation": evaluation_key(folder / "outputs" / "evaluate" / variant),
        "data": _hashes(folder / "dvc.lock"),
        "ran": ran,
        "seconds": round(time.monotonic() - started, 1),
        "worker": machine.worker_name(),
    }


def _numbers(path: Path) -> dict[str, Any]:
    """Return a metrics file, or nothing of a stage that was no target."""
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _run_key(history: Path) -> str:
    """Return what identifies the training's run in MLflow, or nothing where none was a target."""
    return history_key(history) if history.is_file() else ""


def _hashes(lock: Path) -> dict[str, str]:
    """Return the DVC hash of every output of the pipeline."""
    stages = yaml.safe_load(lock.read_text())["stages"]
    return {out["path"]: out["md5"] for entry in stages.values() for out in entry.get("outs", [])}
