import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from emoji import emoji, emoji_values

from sfd_core.experiment.params import parse_params
from sfd_core.tracking.dashboard import TAG, refresh_dashboard
from sfd_core.tracking.runs import RunSpec, compared_by, variant_run
from sfd_core.tracking.store import Store
from sfd_core.tracking.sweep import SweepPoint, record_sweep

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")

NUMBER = "fd_x"


@pytest.fixture
def store(embedded: Path) -> Store:
    """A store with DiT, a VAE, and a sweep of two trained offsets and one point that trained nothing."""
    made = Store()
    made.create(RunSpec("dit", {"variant.model": "dit"}, {"sfd.kind": "variant"}), {"sfd.key": "baseline"})
    made.create(RunSpec("texture_vae", {}, {"sfd.kind": "vae"}), {"sfd.key": "vae"})
    for number in (0, 3):
        params = {"variant.model": "sfd", "variant.delta_t": f"0.{number}"}
        made.create(RunSpec("sfd", params, {"sfd.kind": "variant"}), {"sfd.key": f"run-{number}", "sfd.evaluation": "e"})
    points = [
        SweepPoint(
            f"sfd-0.{number}", f"point-{number}", {"delta_t": f"0.{number}"}, {NUMBER: 1.0}, 10, "commit", f"run-{number}", "e"
        )
        for number in (0, 3)
    ]
    record_sweep(made, "offsets", [*points, SweepPoint("sfd-scale-2", "scale", {"scale": "2"}, {NUMBER: 2.0}, 10, "commit")])
    return made


def view(store: Store) -> dict[str, Any]:
    from mlflow import MlflowClient  # noqa: PLC0415 - only the tests that run pay for it

    tags = MlflowClient(store.uri).get_experiment(store.experiment_id).tags
    return dict(json.loads(tags[TAG]))


def test_what_the_page_asks_for_is_one_run_a_point_and_dit_first(store: Store) -> None:
    shown = refresh_dashboard(store, NUMBER)
    assert shown.baselines == ("dit",)
    asked = view(store)
    from mlflow import MlflowClient  # noqa: PLC0415

    order = f"{asked['orderByKey']} {'ASC' if asked['orderByAsc'] else 'DESC'}"
    found = MlflowClient(store.uri).search_runs([store.experiment_id], asked["searchFilter"], order_by=[order])
    names = [run.info.run_name for run in found]
    assert names[0] == "dit"
    assert sorted(names) == ["dit", "sfd-0.0", "sfd-0.3", "sfd-scale-2"]


def test_charts_follow_what_there_is(store: Store) -> None:
    assert refresh_dashboard(store, NUMBER).charts == len(view(store)["compareRunCharts"])
    charts = view(store)["compareRunCharts"]
    assert [chart["xaxis"]["key"] for chart in charts if chart["type"] == "SCATTER"] == ["variant.delta_t", "scale"]
    (parallel,) = [chart for chart in charts if chart["type"] == "PARALLEL"]
    assert parallel["selectedParams"] == ["variant.delta_t"]
    assert {chart["metricSectionId"] for chart in charts} <= {section["uuid"] for section in view(store)["compareRunSections"]}


def test_published_curves_become_runs_once(store: Store) -> None:
    rows = {"step": [100, 200], "images_seen": [25_600, 51_200], "fid": [30.0, 20.0], "source": ["arXiv 2212.09748"] * 2}
    for _ in range(2):
        shown = refresh_dashboard(store, NUMBER, {"DiT-XL/2": pd.DataFrame(rows)})
    assert sorted(shown.baselines) == ["dit", "published: DiT-XL/2"]
    assert len(store.find({"sfd.kind": "published"})) == 1


@pytest.mark.parametrize(
    ("group", "changes"),
    [("prepare", {"held_out": 0.4}), ("evaluate", {"snapshot_samples": 90}), ("evaluate", {"final_samples": 900})],
)
def test_runs_of_other_images_or_sample_counts_are_on_no_chart(store: Store, group: str, changes: dict[str, Any]) -> None:
    values = emoji_values()
    other = parse_params(values | {group: values[group] | changes})
    for key, params in {"here": emoji(), "other": other}.items():
        store.create(variant_run(params, "dit"), {"sfd.key": key})
    store.create(RunSpec("training", {"training.loss": "l2"}, {"sfd.kind": "training"}), {})

    def shown() -> set[str]:
        return {run.tags.get("sfd.key", run.name) for run in store.runs() if run.tags["sfd.compared"] == "yes"}

    refresh_dashboard(store, NUMBER, shared=compared_by(emoji()))
    everywhere = {"baseline", "run-0", "run-3", "sfd-scale-2", "training"}
    assert shown() == everywhere | {"here"}
    refresh_dashboard(store, NUMBER, shared=compared_by(other))
    assert shown() == everywhere | {"other"}
