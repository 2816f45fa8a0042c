from pathlib import Path

import pytest

from sfd_core.tracking import Store
from sfd_core.tracking.runs import RunSpec
from sfd_core.tracking.sweep import PARENT_TAG, SweepPoint, record_sweep

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")


def point(key: str, delta_t: float) -> SweepPoint:
    return SweepPoint(f"sfd-{delta_t}", key, {"delta_t": str(delta_t)}, {"fd_x": 10 - delta_t}, 1200, "commit")


def test_a_sweep_is_one_run_with_a_child_a_point_however_often_it_is_told(embedded: Path) -> None:
    store = Store()
    table = embedded / "table.csv"
    table.write_text("point\n")
    parent = record_sweep(store, "offsets", [point("a", 0.0)], [table])
    assert record_sweep(store, "offsets", [point("a", 0.0), point("b", 0.3)], [table]) == parent
    children = store.find({PARENT_TAG: parent})
    assert [tags["sfd.point"] for _, tags in children] == ["a", "b"]
    from mlflow import MlflowClient  # noqa: PLC0415 - only the tests that run pay for it

    client = MlflowClient(store.uri)
    child = client.get_run(children[1][0])
    assert child.data.params == {"delta_t": "0.3"}
    assert child.info.status == "FINISHED"
    (metric,) = client.get_metric_history(child.info.run_id, "final/fd_x")
    assert (metric.step, metric.value) == (1200, 9.7)
    assert [file.path for file in client.list_artifacts(parent, "sweep")] == ["sweep/table.csv"]
    assert record_sweep(store, "sizes", []) != parent


def test_a_training_judged_in_two_ways_is_shown_under_the_name_of_each_point(embedded: Path) -> None:
    store = Store()
    runs = [
        store.create(RunSpec("sfd", {}, {"sfd.kind": "variant"}), {"sfd.key": "training", "sfd.evaluation": evaluation})
        for evaluation in ("ten", "fifty")
    ]
    points = [
        SweepPoint(f"sfd-{evaluation}", evaluation, {}, {"fd_x": 1.0}, 10, "commit", "training", evaluation)
        for evaluation in ("ten", "fifty")
    ]
    record_sweep(store, "evaluations", points)
    names = {run.run_id: run.name for run in store.runs()}
    assert [names[run] for run in runs] == ["sfd-ten", "sfd-fifty"]
