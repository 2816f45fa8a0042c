import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from sfd_core.tracking import store as store_module
from sfd_core.tracking.address import has_run
from sfd_core.tracking.curves import Curve
from sfd_core.tracking.runs import RunSpec
from sfd_core.tracking.store import Evidence, Store, sync_run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")

SPEC = RunSpec("sfd", {f"group.value_{number}": str(number) for number in range(230)}, {"sfd.commit": "abc"})


def write_curve(path: Path, steps: int, first: int = 1) -> Curve:
    rows = [f"{step},{step * 8},{step * 0.25},{1 / step}" for step in range(first, steps + 1)]
    path.write_text("\n".join(["step,images_seen,seconds,loss", *rows]) + "\n")
    return Curve(path, "train")


def logged(store: Store, run_id: str, key: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient  # noqa: PLC0415 - only the tests that run pay for it

    history = MlflowClient(store.uri).get_metric_history(run_id, key)
    return sorted((metric.step, metric.value) for metric in history)


def test_a_curve_arrives_once_however_often_it_is_sent(embedded: Path) -> None:
    store, curve = Store(), write_curve(embedded / "history.csv", 400)
    first = sync_run(store, SPEC, "key", Evidence(curves=[curve], finals={"final/psnr": 20.5}))
    assert first.points_sent == 3 * 400 + 1
    again = sync_run(store, SPEC, "key", Evidence(curves=[curve], finals={"final/psnr": 20.5}))
    assert (again.run_id, again.points_sent) == (first.run_id, 0)
    assert logged(store, first.run_id, "train/loss") == [(step, 1 / step) for step in range(1, 401)]
    assert logged(store, first.run_id, "final/psnr") == [(400, 20.5)]


def test_only_what_is_missing_is_sent(embedded: Path) -> None:
    store = Store()
    live = store.create(SPEC, {"sfd.key": "key"})
    store.send(live, write_curve(embedded / "history.csv", 30).points(), set())
    longer = sync_run(store, SPEC, "key", Evidence(curves=[write_curve(embedded / "history.csv", 50)]))
    assert longer.points_sent == 3 * 20
    assert [step for step, _ in logged(store, longer.run_id, "train/loss")] == list(range(1, 51))


def test_the_commit_of_a_run_is_the_one_that_its_training_began_with(embedded: Path) -> None:
    store = Store()
    live = store.create(SPEC, {"sfd.key": "key"})
    later = replace(SPEC, tags={"sfd.commit": "def", "sfd.params": "1"})
    sync_run(store, later, "key", Evidence(curves=[write_curve(embedded / "history.csv", 3)]))
    tags = store.run(live).tags
    assert (tags["sfd.commit"], tags["sfd.params"], tags["sfd.complete"]) == ("abc", "1", "true")


def test_all_runs_are_found_in_the_order_of_their_start(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RUNS_A_CALL", 2)
    store = Store()
    made = [store.create(replace(SPEC, name=name), {"sfd.key": "key"}) for name in "abcde"]
    assert [run for run, _ in store.find({"sfd.key": "key"})] == made
    assert {run.run_id for run in store.runs()} == set(made)


def test_a_point_whose_answer_was_lost_is_stored_once(embedded: Path) -> None:
    store, curve = Store(), write_curve(embedded / "history.csv", 20)
    run_id = store.create(SPEC, {})
    store.send(run_id, curve.points(), set())
    store.send(run_id, curve.points(), set())
    assert set(Counter(step for step, _ in logged(store, run_id, "train/loss")).values()) == {1}


def test_parameters_tags_files_and_pictures_are_there(embedded: Path) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415 - only the tests that run pay for it

    picture = embedded / "grid-step-0000100.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    evidence = Evidence(files={"figures": [picture]}, step_images={100: picture}, tags={"sfd.protocol": "x" * 9000})
    store = Store()
    run_id = sync_run(store, SPEC, "key", evidence).run_id
    client = MlflowClient(store.uri)
    run = client.get_run(run_id)
    assert run.data.params == SPEC.params
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "sfd"
    assert run.data.tags["sfd.commit"] == "abc"
    assert run.data.tags["sfd.protocol"].startswith("xxx")
    assert [file.path for file in client.list_artifacts(run_id, "figures")] == ["figures/grid-step-0000100.png"]
    images = [file.path for file in client.list_artifacts(run_id, "images")]
    store.send_files(run_id, evidence)
    assert [file.path for file in client.list_artifacts(run_id, "images")] == images != []
    assert (embedded / ".sfd" / "mlartifacts").is_dir()
    assert sorted(path.name for path in embedded.iterdir()) == [".sfd", picture.name]


def test_another_evaluation_of_the_same_training_is_another_run(embedded: Path) -> None:
    store, curve = Store(), write_curve(embedded / "history.csv", 5)
    trained = sync_run(store, SPEC, "key", Evidence(curves=[curve]))
    judged = sync_run(store, SPEC, "key", Evidence(curves=[curve], tags={"sfd.evaluation": "a"}))
    other = sync_run(store, SPEC, "key", Evidence(curves=[curve], tags={"sfd.evaluation": "b"}))
    again = sync_run(store, SPEC, "key", Evidence(curves=[curve], tags={"sfd.evaluation": "a"}))
    assert trained.run_id == judged.run_id == again.run_id != other.run_id
    assert len(store.find({"sfd.key": "key"})) == 2


def test_a_run_begun_during_training_is_completed(embedded: Path) -> None:
    store, curve = Store(), write_curve(embedded / "history.csv", 5)
    live = store.create(RunSpec("sfd", {"training.seed": "0"}, {}), {"sfd.resume_key": "resume"})
    assert sync_run(store, SPEC, "key", Evidence(curves=[curve]), resume_key="resume").run_id == live
    assert store.find({"sfd.key": "key", "sfd.commit": "abc"})[0][0] == live
    assert sync_run(store, SPEC, "key", Evidence(curves=[curve])).run_id == live


def test_a_run_is_known_without_mlflow_unless_it_is_deleted(embedded: Path) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415 - only the tests that run pay for it

    store = Store()
    run_id = store.create(SPEC, {})
    assert has_run(store.uri, run_id)
    assert not has_run(store.uri, "0" * 32)
    MlflowClient(store.uri).delete_run(run_id)
    assert not has_run(store.uri, run_id)
    assert not has_run(f"sqlite:///{embedded / 'none.db'}", run_id)
    assert not (embedded / "none.db").exists()
    assert not has_run("http://127.0.0.1:9", run_id)


def files_of(store: Store, run_id: str) -> list[str]:
    """Return the contents of the run's files as clients read them."""
    from mlflow import MlflowClient  # noqa: PLC0415 - only the tests that run pay for it

    client = MlflowClient()
    return [Path(client.download_artifacts(run_id, file.path)).read_text() for file in client.list_artifacts(run_id, "records")]


@pytest.mark.parametrize(("name", "copied"), [("moved", False), ("copied", True), ("100%20_#?,é [x]", False)])
def test_a_store_that_was_moved_or_copied_has_its_files_where_it_is(
    embedded: Path, monkeypatch: pytest.MonkeyPatch, name: str, copied: bool
) -> None:
    before, now = embedded / "before", embedded / name
    before.mkdir()
    (embedded / ".sfd").rename(before / ".sfd")
    monkeypatch.chdir(before)
    for text in ("first", "second"):
        (embedded / f"{text}.txt").write_text(text)
    first = sync_run(Store(), SPEC, "key", Evidence(files={"records": [embedded / "first.txt"]})).run_id
    shutil.copytree(before, now) if copied else before.rename(now)
    monkeypatch.chdir(now)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    kept = sorted(before.rglob("*"))
    store = Store()
    second = sync_run(store, SPEC, "other", Evidence(files={"records": [embedded / "second.txt"]})).run_id
    assert [files_of(store, run) for run in (first, second)] == [["first"], ["second"]]
    assert len(list((now / ".sfd" / "mlartifacts").rglob("*.txt"))) == 2
    assert sorted(before.rglob("*")) == kept
    assert before.exists() == copied
    assert {path.name for path in embedded.iterdir()} <= {"before", name, "first.txt", "second.txt"}
