"""A sweep in MLflow: a parent run, and one child run per point with its settings and numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sfd_core.tracking.curves import Point, metric_name
from sfd_core.tracking.runs import RunSpec
from sfd_core.tracking.store import EVALUATION_TAG, KEY_TAG, Evidence, Store

PARENT_TAG = "mlflow.parentRunId"
REF_TAG, FILES_TAG = "sfd.ref", "sfd.files"
NOTE_TAG = "mlflow.note.content"
"""MLflow shows it as the description of a run."""
KIND_TAG, SWEEP_TAG, POINT_TAG = "sfd.kind", "sfd.sweep", "sfd.point"
RUN_KEY_TAG = "sfd.run_key"


@dataclass(frozen=True)
class SweepPoint:
    """A finished point of a sweep."""

    name: str
    key: str
    """Identifies the experiment."""
    settings: Mapping[str, str]
    """The varied parameters and the variant."""
    numbers: Mapping[str, float]
    step: int
    """Training steps behind the numbers."""
    commit: str
    run_key: str = ""
    """`history_key` of its training, whose run has the curves; empty for a point without training."""
    evaluation: str = ""
    """`evaluation_key` of its numbers; a training that was evaluated in two ways has two runs."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Where the rest of it is: Git ref, Prefect flow run, files; each under the tag of its runs."""


@dataclass(frozen=True)
class Recorded:
    """A sweep in MLflow."""

    parent: str
    """Id of its run."""
    runs: Mapping[str, str]
    """Point -> id of the run with its curves: that of its training, or else its child run."""


def record_sweep(store: Store, name: str, points: Sequence[SweepPoint], files: Sequence[Path] = ()) -> Recorded:
    """Create or complete the parent run `name` and its child runs, and return their ids.

    Calling it again creates nothing twice. The run of a point's training, which several sweeps can share, gets the name of the
    point. The runs of a point link to its `places`.
    """
    runs = {}
    parent = _parent(store, name)
    present = {tags[POINT_TAG]: run for run, tags in store.find({PARENT_TAG: parent}) if POINT_TAG in tags}
    for point in points:
        child = present.get(point.key)
        if child is None:
            tags = {PARENT_TAG: parent, POINT_TAG: point.key, "sfd.commit": point.commit}
            tags |= {RUN_KEY_TAG: point.run_key, EVALUATION_TAG: point.evaluation} if point.run_key else {}
            child = store.create(RunSpec(point.name, point.settings, {KIND_TAG: "point", SWEEP_TAG: name}), tags)
        values = [Point(metric_name("final", key), point.step, value, 0.0) for key, value in point.numbers.items()]
        store.send(child, values, store.known(child, {value.key for value in values}))
        store.finish(child)
        trainings = [run_id for run_id, _ in find_training(store, point.run_key, point.evaluation)]
        for run_id in trainings:
            store.rename(run_id, point.name)
        for run_id in [child, *trainings] if point.places else []:
            store.tag(run_id, {**point.places, NOTE_TAG: _note(point.places)})
        runs[point.name] = [child, *trainings][-1]
    store.send_files(parent, Evidence(files={"sweep": list(files)}))
    store.finish(parent)
    return Recorded(parent, runs)


def find_training(store: Store, run_key: str, evaluation: str) -> list[tuple[str, dict[str, str]]]:
    """Return (id, tags) of the run of a point's training with its numbers; empty if the store has none."""
    return store.find({KEY_TAG: run_key, EVALUATION_TAG: evaluation}) if run_key else []


def shown_place(place: str) -> str:
    """Return a place of a point in Markdown; pages are links."""
    if place.startswith(("http://", "https://")):
        return f"[{place.rpartition('/')[-1]}]({place})"
    return f"`{place}`" if place else ""


def _note(places: Mapping[str, str]) -> str:
    return "\n".join(f"- {tag.removeprefix('sfd.').replace('_', ' ')}: {shown_place(place)}" for tag, place in places.items())


def _parent(store: Store, name: str) -> str:
    found = store.find({KIND_TAG: "sweep", SWEEP_TAG: name})
    return found[0][0] if found else store.create(RunSpec(f"sweep {name}", {}, {KIND_TAG: "sweep", SWEEP_TAG: name}), {})
