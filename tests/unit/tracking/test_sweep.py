from dataclasses import replace
from pathlib import Path

import pytest

from sfd_core.tracking.runs import RunSpec
from sfd_core.tracking.store import Store
from sfd_core.tracking.sweep import PARENT_TAG, SweepPoint, record_sweep

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")


def point(key: str, delta_t: float) -> SweepPoint:
    return SweepPoint(f"sfd-{delta_t}", key, {"delta_t": str(delta_t)}, {"fd_x": 10 - delta_t}, 1200, "commit")


def test_a_sweep_is_one_run_with_a_child_a_point_however_often_it_is_told(embedded: Path) -> None:
    store = Store()
    table = embedded / "table.csv"
    table.write_text("point\n")
    parent = record_sweep(store, "offsets", [point("a", 0.0)], [table]).parent
    recorded = record_sweep(store, "offsets", [point("a", 0.0), point("b", 0.3)], [table])
    assert recorded.parent == parent
    children = store.find({PARENT_TAG: parent})
    assert [tags["sfd.point"] for _, tags in children] == ["a", "b"]
    assert recorded.runs == {"sfd-0.0": children[0][0], "sfd-0.3": children[1][0]}
    from mlflow import MlflowClient  # noqa: PLC0415 - only the tests that run pay for it

    client = MlflowClient(store.uri)
    child = client.get_run(children[1][0])
    assert child.data.params == {"delta_t": "0.3"}
    assert child.info.status == "FINISHED"
    (metric,) = client.get_metric_history(child.info.run_id, "final/fd_x")
    assert (metric.step, metric.value) == (1200, 9.7)
    assert [file.path for file in client.list_artifacts(parent, "sweep")] == ["sweep/table.csv"]
    assert record_sweep(store, "sizes", []).parent != parent


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


def test_the_runs_of_a_point_say_where_the_rest_of_it_is(embedded: Path) -> None:
    store = Store()
    training = store.create(RunSpec("sfd", {}, {"sfd.commit": "head"}), {"sfd.key": "training", "sfd.evaluation": "ten"})
    places = {"sfd.ref": "refs/sfd/offsets/sfd-0.3", "sfd.flow_run": "http://prefect:4200/runs/flow-run/7"}
    made = replace(point("a", 0.3), run_key="training", evaluation="ten", places=places)
    recorded = record_sweep(store, "offsets", [made])
    assert recorded.runs == {"sfd-0.3": training}
    ((child, _),) = store.find({PARENT_TAG: recorded.parent})
    for run in (training, child):
        tags = store.run(run).tags
        assert {name: tags[name] for name in places} == places
        assert tags["mlflow.note.content"].splitlines() == [
            "- ref: `refs/sfd/offsets/sfd-0.3`",
            "- flow run: [7](http://prefect:4200/runs/flow-run/7)",
        ]
    assert store.run(training).tags["sfd.commit"] == "head"
