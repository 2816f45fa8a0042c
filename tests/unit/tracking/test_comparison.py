"""What a sweep's comparison says of its points."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from emoji import emoji_values

from sfd_core.experiment.grid import Space, plan_points
from sfd_core.tracking.comparison import Comparison, Row
from sfd_core.tracking.runs import MEASURED_BY
from sfd_core.tracking.store import Store
from sfd_core.workspace.dvc import Place, environment

ROOT = Path(__file__).parents[3]
VALUES: dict[str, Any] = emoji_values()


def comparison() -> Comparison:
    points = plan_points(VALUES, Space(["sfd"], {"delta_t": [0.0, 0.3, 1.0]}, [], {}), "code", ROOT)
    numbers = [{"fd_b": 3.0, "fd_a": 1.0, "kid_b": 0.1}, {"fd_b": 2.0, "fd_a": 9.0, "kid_b": 0.2}]
    made = [Row(point, "computed", {"numbers": found}) for point, found in zip(points, numbers, strict=False)]
    return Comparison("offsets", [*made, Row(points[2], "failed", {}, "out of memory")])


def test_points_are_ranked_by_the_first_distance_and_failures_say_why() -> None:
    made = comparison()
    assert made.leading == "fd_b"
    assert made.best is not None
    assert made.best.point.settings["delta_t"] == 0.3
    words = made.summary(["[runs](http://mlflow)"])
    assert "2 computed, 1 failed" in words
    assert "git checkout refs/sfd/offsets/sfd-delta_t-0p3-seed-0" in words
    assert "sfd-delta_t-1-seed-0 failed" in words
    assert "out of memory" in words
    assert "[runs](http://mlflow)" in words
    assert Comparison("failed", made.rows[2:]).best is None


def test_points_of_other_sample_counts_or_references_do_not_compare(tmp_path: Path) -> None:
    points = plan_points(VALUES, Space(["sfd"], {"evaluate.final_samples": [200, 300]}, [], {}), "code", ROOT)
    rows = [Row(point, "computed", {"numbers": {"fd_b": 3.0}}) for point in points]
    made = Comparison("counts", rows)
    assert made.best is None
    assert made.candidate is None
    assert "distances of 200 samples to an unknown reference and of 300 samples" in made.summary([])
    (table,) = made.write(Place(tmp_path, {}, tmp_path / "log"), ["evaluate.final_samples"])
    assert table.name == "table.csv", "a figure would mark one of them as the lowest"
    other = [replace(row, record={**row.record, "data": {"outputs/reference": "0123.dir"}}) for row in rows[:1]]
    assert Comparison("references", [rows[0], *other]).best is None


@pytest.mark.parametrize(("setting", "kinds"), [("evaluations", 2), ("batch_size", 1)])
def test_a_champion_that_was_sampled_otherwise_is_measured_otherwise(setting: str, kinds: int) -> None:
    points = plan_points(VALUES, Space(["sfd"], {f"evaluate.sampler.{setting}": [10, 20]}, [], {}), "code", ROOT)
    record = {"numbers": {"fd_b": 3.0}, "run_key": "key", "commit": "c", "data": {"outputs/reference": "0123.dir"}}
    found = [Comparison("one", [Row(point, "computed", record)]).candidate for point in points]
    measures = [candidate.measure for candidate in found if candidate is not None]
    assert (len(measures), len(set(measures))) == (2, kinds)
    assert all(measure.startswith("fd_b of ") and "samples to 0123.dir, sampler " in measure for measure in measures)


def test_distances_compare_by_their_protocol_and_not_by_what_else_the_reference_holds() -> None:
    points = plan_points(VALUES, Space(["sfd"], {"texture_vae.kl_weight": [3e-6, 1e-5]}, [], {}), "code", ROOT)
    protocol = dict.fromkeys(MEASURED_BY, "ab")
    records = [
        {"numbers": {"fd_b": distance}, "run_key": "key", "commit": "c", "data": {"outputs/reference": f"{distance}.dir"}}
        for distance in (9.0, 8.0)
    ]
    rows = [Row(point, "computed", record) for point, record in zip(points, records, strict=True)]
    told = [replace(row, record=row.record | {"measured": {"fd_b": protocol}}) for row in rows]
    assert Comparison("old", rows).best is None
    assert Comparison("mixed", [rows[0], told[1]]).best is None
    assert Comparison("new", told).best is told[1]
    candidates = [Comparison("one", [row]).candidate for row in told]
    assert len({candidate.measure for candidate in candidates if candidate is not None}) == 1
    for key in protocol:
        other = replace(told[1], record=told[1].record | {"measured": {"fd_b": protocol | {key: 7}}})
        assert Comparison("other", [told[0], other]).best is None


def test_a_default_of_the_sampler_written_out_is_no_other_measure() -> None:
    sampler = VALUES["evaluate"]["sampler"]
    given = [{**sampler, "precision": "float32", "guide_step": None}, {**sampler, "batch_size": 7}]
    record = {"numbers": {"fd_b": 3.0}, "run_key": "key", "commit": "c", "data": {}}
    measures = set()
    for values in given:
        (point,) = plan_points(
            VALUES | {"evaluate": VALUES["evaluate"] | {"sampler": values}}, Space(["sfd"], {}, [], {}), "code", ROOT
        )
        candidate = Comparison("one", [Row(point, "computed", record)]).candidate
        measures.add(candidate and candidate.measure)
    assert len(measures) == 1


def test_the_table_shows_what_was_varied_how_it_ended_and_the_numbers() -> None:
    first, _, last = [row.columns for row in comparison().rows]
    assert first["delta_t"] == 0.0
    assert first["fd_b"] == 3.0
    assert last["status"] == "failed"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_what_was_shown_is_sent_again_only_if_it_differs_or_mlflow_lost_it(embedded: Path) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415 - only the tests that run pay for it

    (embedded / ".dvc").mkdir(exist_ok=True)
    (embedded / ".dvc" / "config").write_text("[core]\n    remote = store\n['remote \"store\"']\n    url = s3://sfd/dvc\n")
    page = "http://prefect:4200/runs/flow-run/7"
    known = {"flow_run": page, "data": {"outputs/train/sfd/snapshots": "0123.dir"}}
    rows = [replace(row, record={**row.record, **known, "commit": row.point.name}) for row in comparison().measured]
    made, place = Comparison("offsets", rows), Place(embedded, environment(embedded), embedded / "log")
    files = made.write(place, ["delta_t"])
    assert made.shown(place, ["delta_t"]) is None
    assert made.send(place, files, ["delta_t"], complete=False)
    assert made.shown(place, ["delta_t"]) is None
    where = made.send(place, files, ["delta_t"], complete=True)
    assert made.shown(place, ["delta_t"]) == (files, where)
    store = Store()
    (child,) = [run.run_id for run in store.runs() if run.name == "sfd-delta_t-0-seed-0"]
    name = "sfd-delta_t-0-seed-0"
    places = f"`refs/sfd/offsets/{name}` | `{name}` | [7]({page}) | `s3://sfd/dvc/files/md5/01/23.dir` |"
    assert f"| {name} | `{child}` | {places}" in where[-1].splitlines()
    changed = [replace(rows[0], record={**rows[0].record, "commit": "other"}), rows[1]]
    assert Comparison("offsets", changed).shown(place, ["delta_t"]) is None
    ((parent, _),) = store.find({"sfd.kind": "sweep"})
    MlflowClient(store.uri).delete_run(parent)
    assert made.shown(place, ["delta_t"]) is None
