"""Everything under `outputs/` that MLflow does not have yet: one run for each VAE and each variant, cached or new."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sfd_core.experiment.params import Params, fingerprint
from sfd_core.host.addresses import in_a_line, public
from sfd_core.host.locks import locked
from sfd_core.host.paths import STATE, file_digest, read_json, stage_dir, write_json
from sfd_core.tracking.address import experiment_birth, experiment_name, store_uri, why_unusable
from sfd_core.tracking.curves import Curve, metric_name
from sfd_core.tracking.datasets import DataSet, prepared_images
from sfd_core.tracking.live import history_key
from sfd_core.tracking.runs import RunSpec, VAEName, is_of, training_steps, vae_run, variant_run
from sfd_core.tracking.served import TEXTURE_VAE_PART, TRAIN_PART
from sfd_core.tracking.store import EVALUATION_TAG, SHOWN_TAG, Evidence, Store, sync_run

MARKER = STATE / "tracked.json"
"""Store and experiment -> its birth, and run -> hash of what it was last completed with: nothing new needs no mlflow."""
VAES: tuple[VAEName, ...] = ("texture_vae", "semantic_vae")


@dataclass(frozen=True)
class Tracked:
    """What `track_project` did."""

    uri: str
    completed: Mapping[str, str]
    """Name -> run id of the runs that were made or completed now."""
    failed: Mapping[str, str]
    """Name -> why its run is not complete."""


@dataclass(frozen=True)
class _Finished:
    name: str
    describe: Callable[[], RunSpec]
    """Asks git, so only what is sent is described."""
    key: str
    evidence: Evidence
    training: str | None
    """Key of the training, by which a run that began with it is found."""

    @property
    def digest(self) -> str:
        """Hash of everything the run shows."""
        files = [file for files in self.evidence.files.values() for file in files]
        files += [*self.evidence.step_images.values(), *(curve.path for curve in self.evidence.curves if curve.path.is_file())]
        return fingerprint(self.key, [file_digest(file) for file in files], sorted(self.evidence.model))


def track_project(params: Params, own: Mapping[str, Params] | None = None) -> Tracked:
    """Make sure that every finished VAE and variant has a complete run in the store of MLFLOW_TRACKING_URI.

    `own` has the parameters of variants that were made with others than `params`.
    Nothing new costs no import of mlflow, unless the experiment there is another one by now, as after a server was emptied.
    A store that does not answer or fails is told on stderr and raises nothing: the next call sends what is missing.
    """
    uri = store_uri()
    place = f"{public(uri)} {experiment_name()}"
    finished = [*_finished_vaes(params), *_finished_variants(params, own or {})]
    with locked(STATE / "tracking.lock"):  # so that no run is made twice
        markers = read_json(MARKER)
        known, born = markers.get(place, {}), experiment_birth(uri)
        done = known.get("runs", {}) if born in (None, known.get("born")) else {}
        pending = [run for run in finished if done.get(run.name) != run.digest]
        if not pending:
            return Tracked(public(uri), {}, {})
        if reason := why_unusable(uri):
            return _told(Tracked(public(uri), {}, {run.name: reason for run in pending}))
        completed, failed = _complete(uri, pending, prepared_images(params.prepare, stage_dir("prepare")))
        done |= {run.name: run.digest for run in pending if run.name in completed}
        write_json(MARKER, markers | {place: {"born": experiment_birth(uri), "runs": done}})
        return _told(Tracked(public(uri), completed, failed))


def _complete(uri: str, pending: list[_Finished], data: Sequence[DataSet]) -> tuple[dict[str, str], dict[str, str]]:
    completed: dict[str, str] = {}
    failed: dict[str, str] = {}
    store: Store | None = None
    for run in pending:
        try:
            store = store or Store(uri)
            evidence = replace(run.evidence, data=data, tags={**run.evidence.tags, SHOWN_TAG: run.digest})
            done = store.complete_run(run.name, run.key, evidence.tags)
            completed[run.name] = done or sync_run(store, run.describe(), run.key, evidence, run.training).run_id
        except Exception as error:  # noqa: BLE001 - tracking is best effort, whatever a store answers
            failed[run.name] = in_a_line(error, uri)
    return completed, failed


def _told(tracked: Tracked) -> Tracked:
    for name in tracked.completed:
        print(f"{name}: run complete in MLflow at {tracked.uri}", file=sys.stderr)
    for reason in dict.fromkeys(tracked.failed.values()):
        names = ", ".join(name for name, why in tracked.failed.items() if why == reason)
        print(f"warning: {names}: not in MLflow at {tracked.uri} ({reason}); `sfd track` sends it again", file=sys.stderr)
    return tracked


def _finished_vaes(params: Params) -> Iterator[_Finished]:
    for name in VAES:
        folder = stage_dir(name)
        if not (folder / "history.csv").is_file():
            continue
        metrics = read_json(folder / "metrics.json")
        evidence = Evidence(
            curves=[Curve(folder / "history.csv", "train", steps=training_steps(getattr(params, name)))],
            finals=_numbers(metrics, "final"),
            files={
                "figures": sorted(folder.glob("*.png")),
                "records": _present(folder, "history.csv", "metrics.json", "model.json"),
                "weights": sorted(folder.glob("*.safetensors")),
            },
        )
        yield _Finished(name, partial(vae_run, params, name), _vae_key(folder), evidence, metrics.get("training"))


def _vae_key(folder: Path) -> str:
    """Return what identifies a finished VAE: its curve, or its weights where nothing was trained and the curve is empty."""
    trained = any(Curve(folder / "history.csv", "train").points())
    return history_key(folder / "history.csv") if trained else history_key(folder / "model.json")


def _finished_variants(params: Params, own: Mapping[str, Params]) -> Iterator[_Finished]:
    for name in params.active:
        train, evaluate = stage_dir("train", name), stage_dir("evaluate", name)
        if (train / "history.csv").is_file():
            training = read_json(train / "metrics.json").get("training")
            key = history_key(train / "history.csv")
            studies = [stage_dir("studies", name) / study for study in params.studies_of(name)]
            made = own.get(name, params)
            evidence = _variant_evidence(train, evaluate, studies, training_steps(made.train))
            yield _Finished(name, partial(variant_run, made, name), key, evidence, training)


def _variant_evidence(train: Path, evaluate: Path, studies: list[Path], steps: int | None) -> Evidence:
    own = is_of(evaluate, train)  # not where a training was repeated and its evaluation is still to come
    results = read_json(evaluate / "numbers.json") if own else {}
    finals = _numbers(read_json(train / "metrics.json"), "final")
    for kind in ("final", "oracle"):
        finals |= _numbers(_values(results.get(kind)), kind)
    protocols = {name: number["protocol"] for name, number in (results.get("final") or {}).items() if "protocol" in number}
    tags = {"sfd.protocol": json.dumps(_without_repetition(protocols))} if protocols else {}
    if results:
        tags[EVALUATION_TAG] = evaluation_key(evaluate)
    images = sorted(evaluate.rglob("*.png")) if own else []
    grids = {int(match[1]): file for file in images if (match := re.search(r"step-(\d+)$", file.stem))}
    return Evidence(
        curves=[
            Curve(train / "history.csv", "train", steps=steps),
            Curve(train / "validation.csv", "validation", clock=train / "history.csv"),
            *([Curve(evaluate / "curve.csv", "evaluate", clock=train / "history.csv")] if own else []),
        ],
        finals=finals,
        files={
            "figures": [file for file in images if file.parent == evaluate],
            "records": [
                *_present(train, "history.csv", "validation.csv", "model.json"),
                *(_present(evaluate, "curve.csv", "numbers.json", "classes.csv") if own else []),
            ],
            **{f"studies/{study.name}": sorted(file for file in study.glob("*.*") if file.is_file()) for study in studies},
        },
        step_images=grids,
        tags=tags,
        model=_model(train, train.parent.parent / "texture_vae"),
    )


def evaluation_key(evaluate: Path) -> str:
    """Return what identifies an evaluation: the hash of its curve and numbers; empty where there are none."""
    files = _present(evaluate, "curve.csv", "numbers.json")
    return fingerprint([file_digest(file) for file in files]) if files else ""


def _model(train: Path, texture_vae: Path) -> dict[str, Path]:
    """Return what sampling needs, of the snapshots the last; empty if something is missing or the VAE is another by now."""
    trained_on = read_json(train / "model.json").get("identity", {}).get("texture_vae")
    if trained_on is None or trained_on != read_json(texture_vae / "model.json").get("identity"):
        return {}
    snapshots = sorted(train.glob("snapshots/*.safetensors"))
    needed = [(TRAIN_PART, train, name) for name in ("model.json", "statistics.safetensors")]
    needed += [(TRAIN_PART, train, f"snapshots/{file.name}") for file in snapshots[-1:]]
    needed += [(TEXTURE_VAE_PART, texture_vae, name) for name in ("model.json", "model.safetensors")]
    parts = {f"{part}/{name}": folder / name for part, folder, name in needed}
    return parts if snapshots and all(file.is_file() for file in parts.values()) else {}


def _without_repetition(protocols: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Name once, under `all`, what every number's protocol shares: a tag holds a few thousand characters."""
    first = next(iter(protocols.values()))
    shared = {key: value for key, value in first.items() if all(other.get(key) == value for other in protocols.values())}
    own = {name: {key: value for key, value in protocol.items() if key not in shared} for name, protocol in protocols.items()}
    return {"all": shared, **own}


def _values(numbers: Any) -> dict[str, Any]:
    return {name: number.get("value") for name, number in (numbers or {}).items() if isinstance(number, Mapping)}


def _numbers(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Return the plain numbers of a metrics file as metrics."""
    return {
        metric_name(prefix, name): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _present(folder: Path, *names: str) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]
