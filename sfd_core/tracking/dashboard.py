"""A prepared comparison page in MLflow: one link opens the same charts, runs and order for everyone.

MLflow stores a shared view as a tag of the experiment and finds it by a key in the address. The format of this tag is
undocumented, so mlflow is pinned and a test opens the link in a browser. The saved views of MLflow 3.17 are views of traces,
not of runs, and no chart has error bars; the figure of a sweep has those. A view cannot pin, hide or unfold runs. Therefore it
filters by a tag of the runs, and sorts by another tag, which unfolds them and puts DiT first.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from sfd_core.host.addresses import public
from sfd_core.tracking.address import EMBEDDED_SCHEME
from sfd_core.tracking.curves import Point, metric_name
from sfd_core.tracking.runs import COMPARED_TAG, RunSpec
from sfd_core.tracking.store import EVALUATION_TAG, KEY_TAG, NAME_TAG, Run, Store
from sfd_core.tracking.sweep import KIND_TAG, RUN_KEY_TAG

KEY = "comparison"
TAG = f"mlflow.sharedViewState.{KEY}"
BASELINE_TAG, COLOUR_TAG = "sfd.baseline", "mlflow.runColor"
BLACK = "#000000"
"""Colour of baselines only."""
PUBLISHED = "published"
IMAGES_SEEN = metric_name("evaluate", "images_seen")
LOSS_TERMS = "train/"
SWEPT = ("variant.delta_t", "scale")
"""Parameters with their own chart: the offset of a training, the guidance scale of a point without training."""
NOT_A_LOSS = ("gradient_norm", "learning_rate", "images_per_second", "images_seen")
SECTIONS = ("Convergence", "Sweeps", "Training")


@dataclass(frozen=True)
class Dashboard:
    """The link of the page and what it shows."""

    link: str
    baselines: tuple[str, ...]
    """Names of the DiT runs, which are shown first."""
    charts: int


def refresh_dashboard(
    store: Store, number: str, published: Mapping[str, pd.DataFrame] = {}, shared: Mapping[str, str] = {}
) -> Dashboard:
    """Update the charts for all runs, DiT first, and return the link of the page.

    A run that has a parameter of `shared` with another value is not shown, see `compared_by`.

    `number` is the main distance, such as `fid`. Each of the `published` curves of it (model -> `step`, `images_seen`, `fid`,
    `source`) becomes a run, once.
    """
    for model, curve in published.items():
        _record_published(store, number, model, curve)
    runs = store.runs()
    trained = {_training_of(run, KEY_TAG) for run in runs if KEY_TAG in run.tags}
    alike = [run for run in runs if all(run.params.get(name, value) == value for name, value in shared.items())]
    for run in runs:
        tags = {COMPARED_TAG: "yes" if run in alike and _is_compared(run, trained) else "no"}
        tags |= {BASELINE_TAG: "DiT", COLOUR_TAG: BLACK} if _is_baseline(run) else {}
        store.tag(run.run_id, {name: value for name, value in tags.items() if run.tags.get(name) != value})
    charts = list(_charts(number, alike))
    store.tag_experiment(TAG, json.dumps(_view(charts)))
    return Dashboard(dashboard_link(store), tuple(run.name for run in alike if _is_baseline(run)), len(charts))


def dashboard_link(store: Store) -> str:
    """Return the address of the comparison; for the embedded store, on the server of `make serve-mlflow`."""
    base = "http://127.0.0.1:5000" if store.uri.startswith(EMBEDDED_SCHEME) else public(store.uri).rstrip("/")
    return f"{base}/#/experiments/{store.experiment_id}/runs?viewStateShareKey={KEY}&compareRunsMode=CHART"


def _record_published(store: Store, number: str, model: str, curve: pd.DataFrame) -> None:
    name = f"{PUBLISHED}: {model}"
    if store.find({KIND_TAG: PUBLISHED, NAME_TAG: name}):
        return
    source = ", ".join(dict.fromkeys(curve["source"]))
    run_id = store.create(RunSpec(name, {"source": source}, {KIND_TAG: PUBLISHED}), {})
    columns = {metric_name("evaluate", number): "fid", IMAGES_SEEN: "images_seen"}
    rows = curve.to_dict("records")
    points = [Point(key, int(row["step"]), float(row[name]), 0.0) for row in rows for key, name in columns.items()]
    store.send(run_id, points, set())
    store.finish(run_id)


def _is_baseline(run: Run) -> bool:
    return run.params.get("variant.model") == "dit" or run.name.startswith(f"{PUBLISHED}: DiT")


def _training_of(run: Run, tag: str) -> tuple[str, str]:
    """Return the key of the training in tag `tag`, and the key of its evaluation."""
    return run.tags.get(tag, ""), run.tags.get(EVALUATION_TAG, "")


def _is_compared(run: Run, trained: Collection[tuple[str, str]]) -> bool:
    """Whether to show a run: it has numbers, and is not the point of a sweep whose training is a run already."""
    kind = run.tags.get(KIND_TAG)
    return kind not in ("vae", "sweep") and not (kind == "point" and _training_of(run, RUN_KEY_TAG) in trained)


def _charts(number: str, runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    measured, final = metric_name("evaluate", number), metric_name("final", number)
    line = _Line("Convergence", measured, log_x=True, log_y=True)
    yield line.card(f"{number} over training steps")
    yield replace(line, over=IMAGES_SEEN).card(f"{number} over images seen")
    for parameter in SWEPT:
        if any(parameter in run.params for run in runs):
            yield _scatter("Sweeps", parameter, final, f"{number} over {parameter}")
    varied = _varied(runs)
    yield _parallel("Sweeps", varied, [final], f"{number} over all varied parameters")
    for term in _loss_terms(runs):
        yield _Line("Training", term, log_y=True).card(term)


@dataclass(frozen=True)
class _Line:
    section: str
    metric: str
    over: str = ""
    log_x: bool = False
    log_y: bool = False

    def card(self, title: str) -> dict[str, Any]:
        axis = {"xAxisKey": "metric", "selectedXAxisMetricKey": self.over} if self.over else {"xAxisKey": "step"}
        return _card("LINE", self.section, title) | axis | {
            "metricKey": self.metric,
            "selectedMetricKeys": [self.metric],
            "scaleType": "log" if self.log_y else "linear",
            "xAxisScaleType": "log" if self.log_x else "linear",
            "useGlobalXaxisKey": False,
            "useGlobalLineSmoothing": False,
            "lineSmoothness": 0,
            "range": {},
            "yAxisKey": "metric",
            "yAxisExpressions": [],
        }  # fmt: skip


def _scatter(section: str, parameter: str, metric: str, title: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": parameter, "type": "PARAM"}, "yaxis": {"key": metric, "type": "METRIC"}}
    return _card("SCATTER", section, title) | axes


def _parallel(section: str, parameters: Sequence[str], metrics: Sequence[str], title: str) -> dict[str, Any]:
    selected = {"selectedParams": list(parameters), "selectedMetrics": list(metrics), "showAllRuns": False}
    return _card("PARALLEL", section, title) | selected


def _card(kind: str, section: str, title: str) -> dict[str, Any]:
    common = {"type": kind, "uuid": f"{kind}-{title}", "metricSectionId": section, "displayName": title}
    return common | {"isGenerated": False, "deleted": False, "runsCountToCompare": 100}


def _varied(runs: Sequence[Run]) -> list[str]:
    """Return the parameters that differ between the runs of sweeps: trainings of points, and points without training."""
    points = [run for run in runs if run.tags.get(KIND_TAG) == "point"]
    trained = {_training_of(run, RUN_KEY_TAG) for run in points if RUN_KEY_TAG in run.tags}
    values: dict[str, set[str]] = {}
    for run in runs:
        if _training_of(run, KEY_TAG) in trained or (run in points and RUN_KEY_TAG not in run.tags):
            for name, value in run.params.items():
                values.setdefault(name, set()).add(value)
    return sorted(name for name, found in values.items() if len(found) > 1) or ["variant.delta_t", "variant.size"]


def _loss_terms(runs: Sequence[Run]) -> list[str]:
    named = {name for run in runs if run.tags.get(KIND_TAG) in ("variant", "training") for name in run.metrics}
    terms = {name for name in named if name.startswith(LOSS_TERMS) and name.removeprefix(LOSS_TERMS) not in NOT_A_LOSS}
    return sorted(terms, key=lambda name: (name != f"{LOSS_TERMS}loss", name))


def _view(charts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "searchFilter": f"tags.`{COMPARED_TAG}` = 'yes'",
        "orderByKey": f"tags.`{BASELINE_TAG}`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": None,
        "selectedColumns": ["params.`variant.model`", "params.`variant.delta_t`", "params.`variant.size`"],
        "compareRunCharts": list(charts),
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": False, "columns": 2, "cardHeight": 400}
            for name in SECTIONS
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
