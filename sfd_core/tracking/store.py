"""Sends runs to the MLflow store; sending a run or a point again changes nothing.

The time stamp of a point is the start of the run plus the training seconds on disk. So a server that stored a point, but lost
the answer, recognises the point when it is sent again.
"""

import json
import logging
import math
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pandas as pd
from PIL import Image

import sfd_core
from sfd_core.host.paths import STATE, sqlite_address
from sfd_core.tracking.address import embedded_file, experiment_name, is_embedded, store_uri
from sfd_core.tracking.curves import Curve, Point
from sfd_core.tracking.datasets import DataSet
from sfd_core.tracking.runs import RunSpec
from sfd_core.tracking.served import EXAMPLE

NAME_TAG, KEY_TAG, EVALUATION_TAG, COMPLETE_TAG = "sfd.name", "sfd.key", "sfd.evaluation", "sfd.complete"
SHOWN_TAG = "sfd.shown"
"""Hash of everything that a complete run shows."""
BEGAN_WITH = ("sfd.commit", "sfd.lock")
"""Tags of the project as it is, which is another one by the end of a long training: what a run began with stays."""
LICENCE_TAG = "sfd.data_licence"
DIGEST_LENGTH = 16
ARTIFACTS = "mlartifacts"
"""Folder of files beside the embedded store."""
LOCATIONS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
"""Table of MLflow's database -> the column that says where its files are; MLflow stores whole addresses."""
POINTS_A_CALL, PARAMS_A_CALL, RUNS_A_CALL, TAG_LENGTH = 1000, 100, 1000, 5000
"""Limits of MLflow's API."""
SAMPLING_NEEDS = (
    "torch", "torchvision", "timm", "diffusers", "transformers", "torchdiffeq", "safetensors", "numpy", "pandas",
    "pydantic", "pyyaml",
)  # fmt: skip
"""Packages that the model needs for sampling."""
ARCHIVE, LOADER = "sfd_core.zip", "sfd_model"
LOADER_CODE = f"""\"\"\"Loads the model with the code that made it.\"\"\"

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("{ARCHIVE}")))

from sfd_core.tracking.served import _load_pyfunc

__all__ = ["_load_pyfunc"]
"""
"""MLflow puts the folder of a model's code on the path, not an archive in it."""
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Defaults for unset variables; otherwise the client blocks for minutes if the server is down."""


@dataclass(frozen=True)
class Evidence:
    """Curves, numbers, files and model of a finished run."""

    curves: Sequence[Curve] = ()
    finals: Mapping[str, float] = field(default_factory=dict)
    """Final numbers by metric name."""
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """Artifact folder -> files."""
    step_images: Mapping[int, Path] = field(default_factory=dict)
    """Sample grid of each snapshot."""
    tags: Mapping[str, str] = field(default_factory=dict)
    model: Mapping[str, Path] = field(default_factory=dict)
    """Path in the model folder -> file; empty for no model."""
    data: Sequence[DataSet] = ()


@dataclass(frozen=True)
class Synced:
    """Result of completing a run."""

    run_id: str
    points_sent: int


@dataclass(frozen=True)
class Run:
    """A run in the store."""

    run_id: str
    name: str
    """Name in MLflow's pages."""
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """Last value of each metric."""
    data: Sequence[str] = ()
    """Its data sets in words."""


class Store:
    """One experiment of one MLflow store. Methods raise the errors of mlflow."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or store_uri()
        self._mlflow = _import_mlflow()
        address = self.uri
        if is_embedded(self.uri):
            embedded_file(self.uri).parent.mkdir(parents=True, exist_ok=True)
            if "%" in self.uri:  # MLflow would make a folder of the quoted name
                address = sqlite_address(Path(os.path.relpath(embedded_file(self.uri))))
        self._mlflow.set_tracking_uri(address)
        os.environ["MLFLOW_TRACKING_URI"] = self.uri  # for programs in other folders
        self._client = self._mlflow.MlflowClient(tracking_uri=address)
        self.experiment_id = self._experiment()

    def find(self, tags: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
        """Return (id, tags) of the runs that have all of `tags`, oldest first."""
        query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        return [(run.info.run_id, dict(run.data.tags)) for run in self._search(query, ["attributes.start_time ASC"])]

    def runs(self) -> list[Run]:
        """Return all runs, the newest first."""
        return list(map(_described, self._search()))

    def _search(self, query: str = "", order: Sequence[str] = ()) -> Iterator[Any]:
        page: str | None = None
        while page is None or page:
            runs = self._client.search_runs(
                [self.experiment_id], query, max_results=RUNS_A_CALL, order_by=list(order), page_token=page
            )
            yield from runs
            page = runs.token or ""

    def complete_run(self, name: str, key: str, tags: Mapping[str, str]) -> str | None:
        """Return the id of the run of a training, its evaluation and files, see `tags`, if all of it has arrived."""
        runs = self.find({NAME_TAG: name, KEY_TAG: key, COMPLETE_TAG: "true"})
        asked = [tags.get(tag, "") for tag in (EVALUATION_TAG, SHOWN_TAG)]
        return next((run for run, has in runs if [has.get(tag, "") for tag in (EVALUATION_TAG, SHOWN_TAG)] == asked), None)

    def run(self, run_id: str) -> Run:
        """Return one run."""
        return _described(self._client.get_run(run_id))

    def tag_experiment(self, name: str, value: str) -> None:
        """Set a tag of the experiment."""
        self._client.set_experiment_tag(self.experiment_id, name, value)

    def create(self, spec: RunSpec, tags: Mapping[str, str]) -> str:
        """Create a run with the parameters and tags of `spec`, and return its id."""
        run_id: str = self._client.create_run(
            self.experiment_id, tags={**spec.tags, NAME_TAG: spec.name, **tags}, run_name=spec.name
        ).info.run_id
        self.describe(run_id, spec, {})
        return run_id

    def describe(self, run_id: str, spec: RunSpec, present: Collection[str] | None = None) -> None:
        """Log the parameters of `spec` that the run does not have yet; those it has are asked for unless they are `present`."""
        if present is None:
            present = self._client.get_run(run_id).data.params
        param = self._mlflow.entities.Param
        missing = [param(name, value) for name, value in spec.params.items() if name not in present]
        for chunk in _chunks(missing, PARAMS_A_CALL):
            self._client.log_batch(run_id, params=chunk)

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags, truncated to the length that MLflow allows."""
        if tags:
            tag = self._mlflow.entities.RunTag
            self._client.log_batch(run_id, tags=[tag(name, value[:TAG_LENGTH]) for name, value in tags.items()])

    def rename(self, run_id: str, name: str) -> None:
        """Rename a run in MLflow's pages."""
        self._client.update_run(run_id, name=name)

    def reopen(self, run_id: str) -> None:
        """Mark a run as going on."""
        self._client.update_run(run_id, "RUNNING")

    def finish(self, run_id: str, status: str = "FINISHED") -> None:
        """Mark a run as ended."""
        self._client.set_terminated(run_id, status)

    def known(self, run_id: str, keys: Iterable[str]) -> set[tuple[str, int]]:
        """Return the pairs (key, step) of `keys` that a run has."""
        present = self._client.get_run(run_id).data.metrics
        return {(key, metric.step) for key in keys if key in present for metric in self._client.get_metric_history(run_id, key)}

    def send(self, run_id: str, points: Iterable[Point], known: set[tuple[str, int]]) -> int:
        """Log the points that are not in `known`, add them to it, and return their number."""
        new = {(point.key, point.step): point for point in points if (point.key, point.step) not in known}
        start: int = self._client.get_run(run_id).info.start_time
        metric = self._mlflow.entities.Metric
        for chunk in _chunks(list(new.values()), POINTS_A_CALL):
            metrics = [metric(point.key, point.value, start + round(point.seconds * 1000), point.step) for point in chunk]
            self._client.log_batch(run_id, metrics=metrics)
            known.update((point.key, point.step) for point in chunk)
        return len(new)

    def send_files(self, run_id: str, evidence: Evidence) -> None:
        """Upload files, and sample grids of steps for which the run has none."""
        for folder, files in evidence.files.items():
            for file in files:
                self._client.log_artifact(run_id, str(file), folder)
        present = {
            int(match[1])
            for artifact in self._client.list_artifacts(run_id, "images")
            if (match := re.search(r"samples[%+]step[%+](\d+)", artifact.path))
        }
        for step, file in evidence.step_images.items():
            if step not in present:
                self._client.log_image(run_id, np.asarray(Image.open(file).convert("RGB")), key="samples", step=step)

    def send_data(self, run_id: str, data: Sequence[DataSet]) -> None:
        """Log data sets as inputs of a run, and their licence as a tag; those that it has are logged once."""
        entities = self._mlflow.entities
        inputs = [
            entities.DatasetInput(
                entities.Dataset(
                    name=found.name,
                    digest=found.digest[:DIGEST_LENGTH],
                    source_type="local" if found.path else "code",
                    source=json.dumps({"uri": found.path} if found.path else {"tags": dict(found.drawn)}),
                    profile=json.dumps({"num_rows": found.images, "num_classes": found.classes}),
                ),
                [entities.InputTag("mlflow.data.context", found.context)],
            )
            for found in data
        ]
        if inputs:
            self._client.log_inputs(run_id, inputs)
            self.tag(run_id, {LICENCE_TAG: data[0].licence})

    def watch_machine(self, run_id: str) -> Callable[[], None]:
        """Return a function that logs the load of processors, memory, disk, network and GPUs as system metrics of a run.

        A value is the mean since the call before; GPUs need the package nvidia-ml-py.
        """
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = cast("Any", SystemMetricsMonitor)(run_id, resume_logging=True, tracking_uri=self._client.tracking_uri)

        def log() -> None:
            monitor.collect_metrics()
            monitor.publish_metrics(monitor.aggregate_metrics())
            monitor.mlflow_logger.flush()

        return log

    def send_model(self, run_id: str, parts: Mapping[str, Path]) -> None:
        """Log the denoiser as a model for `mlflow.pyfunc.load_model`, with this package as one archive."""
        STATE.mkdir(exist_ok=True)
        logged = self._client.create_logged_model(self.experiment_id, "denoiser", run_id)
        with tempfile.TemporaryDirectory(dir=STATE) as staging:
            loader, archive, data, folder = (Path(staging) / name for name in (f"{LOADER}.py", ARCHIVE, "denoiser", "model"))
            loader.write_text(LOADER_CODE)
            _write_archive(archive)
            for name, source in parts.items():
                (data / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, data / name)
            self._mlflow.pyfunc.save_model(
                folder,
                loader_module=LOADER,
                data_path=str(data),
                code_paths=[str(loader), str(archive)],
                pip_requirements=[f"{name}=={version(name)}" for name in SAMPLING_NEEDS],
                signature=_signature(),
                input_example=pd.DataFrame(EXAMPLE),
                mlflow_model=self._mlflow.models.Model(logged.artifact_location, run_id, model_id=logged.model_id),
            )
            self._client.log_model_artifacts(logged.model_id, str(folder))
        self._client.finalize_logged_model(logged.model_id, "READY")
        self._client.log_outputs(run_id, [self._mlflow.entities.LoggedModelOutput(logged.model_id, 0)])

    def model_of(self, run_id: str) -> str | None:
        """Return the id of the newest model of a run, or None."""
        found = self._client.search_logged_models([self.experiment_id], filter_string=f"source_run_id = '{run_id}'")
        newest = max(found, key=lambda model: model.creation_timestamp, default=None)
        return None if newest is None else str(newest.model_id)

    def register(self, name: str, model_id: str, run_id: str, description: str, tags: Mapping[str, str]) -> str:
        """Make a logged model a version of the registered model `name` unless it is one, and return the version number."""
        try:
            self._client.create_registered_model(name)
        except self._mlflow.exceptions.MlflowException:  # it exists already
            self._client.get_registered_model(name)
        source = f"models:/{model_id}"
        versions = self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        known = [version for version in versions if version.source == source or version.model_id == model_id]
        version = known[0] if known else self._client.create_model_version(name, source, run_id, model_id=model_id)
        self._client.update_model_version(name, version.version, description)
        for tag, value in tags.items():
            self._client.set_model_version_tag(name, version.version, tag, value[:TAG_LENGTH])
        return str(version.version)

    def alias(self, name: str, alias: str, version: str) -> None:
        """Set an alias of a registered model to a version."""
        self._client.set_registered_model_alias(name, alias, version)

    def version_tags(self, name: str, alias: str) -> dict[str, str]:
        """Return the tags of the version with an alias of a registered model; empty without such an alias."""
        version = self._client.get_registered_model(name).aliases.get(alias)
        return {} if version is None else dict(self._client.get_model_version(name, version).tags)

    def _experiment(self) -> str:
        name = experiment_name()
        place = None
        if is_embedded(self.uri):
            place = (embedded_file(self.uri).resolve().parent / ARTIFACTS).as_uri()
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=place))
            except self._mlflow.exceptions.MlflowException:  # another process created it first
                experiment = self._client.get_experiment_by_name(name)
        elif place is not None and experiment.artifact_location.endswith(f"/{ARTIFACTS}"):
            _move_artifacts(embedded_file(self.uri), experiment.artifact_location, place)
        return str(experiment.experiment_id)


def sync_run(store: Store, spec: RunSpec, key: str, evidence: Evidence, resume_key: str | None = None) -> Synced:
    """Complete or create the run of `key`, and send only what the store does not have yet.

    A run that was created during the training is found by its `resume_key`. Another evaluation of the same training becomes a
    separate run, so that no curve mixes two protocols.
    """
    run_id, tags = _run_of(store, spec, key, evidence.tags.get(EVALUATION_TAG, ""), resume_key)
    is_complete = COMPLETE_TAG in tags
    if is_complete and tags.get(SHOWN_TAG) == evidence.tags.get(SHOWN_TAG):
        return Synced(run_id, 0)
    is_new = not tags
    points = [point for curve in evidence.curves for point in curve.points()]
    last = max(points, key=lambda point: point.step, default=Point("", 0, 0.0, 0.0))
    points += [Point(name, last.step, value, last.seconds) for name, value in evidence.finals.items() if math.isfinite(value)]
    sent = store.send(run_id, points, set() if is_new else store.known(run_id, {point.key for point in points}))
    if not is_new:
        store.describe(run_id, spec)
    store.send_files(run_id, evidence)
    store.send_data(run_id, evidence.data)
    if evidence.model and not (is_complete and store.model_of(run_id)):
        store.send_model(run_id, evidence.model)
    began = {name: tags[name] for name in BEGAN_WITH if name in tags}
    store.tag(run_id, {**spec.tags, **began, **evidence.tags, KEY_TAG: key, COMPLETE_TAG: "true"})
    if not is_complete:
        store.finish(run_id)
    return Synced(run_id, sent)


def _run_of(store: Store, spec: RunSpec, key: str, evaluation: str, resume_key: str | None) -> tuple[str, dict[str, str]]:
    """Return the id and the tags of the run of a training and its evaluation; no tags if it was created now."""
    candidates = store.find({NAME_TAG: spec.name, KEY_TAG: key})
    if not candidates and resume_key is not None:
        candidates = store.find({NAME_TAG: spec.name, "sfd.resume_key": resume_key})
    for run_id, tags in candidates:
        if tags.get(EVALUATION_TAG, evaluation) == evaluation:
            if EVALUATION_TAG not in tags and evaluation:  # so far only the training was complete
                tags.pop(COMPLETE_TAG, None)
            return run_id, tags
    return store.create(spec, {KEY_TAG: key}), {}


def _move_artifacts(database: Path, before: str, now: str) -> None:
    """Let everything in an embedded store that lay at the address `before` lie at `now`: its folder was moved or copied."""
    if before == now:
        return
    with closing(sqlite3.connect(database)) as opened, opened:
        for table, column in LOCATIONS.items():
            statement = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column} || '/', 1, ?) = ?"  # noqa: S608 - our names
            opened.execute(statement, (now, len(before) + 1, len(before) + 1, f"{before}/"))


def _write_archive(path: Path) -> None:
    """Write this package as an archive that Python imports from."""
    package = Path(sfd_core.__file__).parent
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for file in sorted(package.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                archive.write(file, file.relative_to(package.parent))


def _described(run: Any) -> Run:
    sets = [entry.dataset for entry in run.inputs.dataset_inputs]
    data = [f"{found.name}: {_images(found.profile)} images, digest `{found.digest}`" for found in sets]
    return Run(run.info.run_id, run.info.run_name, run.data.params, run.data.tags, run.data.metrics, data)


def _images(profile: str | None) -> str:
    """Return the number in a profile that `send_data` wrote."""
    match = re.search(r'"num_rows": (\d+)', profile or "")
    return f"{int(match[1]):,}" if match else "some"


def _signature() -> Any:
    """Return what the model takes and gives. All columns are required: MLflow drops those that it does not know."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    inputs = Schema([ColSpec("double" if isinstance(values[0], float) else "long", name) for name, values in EXAMPLE.items()])
    return ModelSignature(inputs, Schema([TensorSpec(np.dtype(np.uint8), (-1, 3, -1, -1))]))


def _import_mlflow() -> ModuleType:
    """Import mlflow (takes seconds) with short timeouts and less logging."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
