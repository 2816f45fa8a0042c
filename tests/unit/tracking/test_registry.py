"""The best model of a sweep in the registry of an embedded store."""

from pathlib import Path

import pytest

from sfd_core.tracking.datasets import DataSet
from sfd_core.tracking.registry import Candidate, register_best
from sfd_core.tracking.runs import RunSpec
from sfd_core.tracking.store import Store

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


@pytest.fixture
def store(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with two finished trainings, each with a model."""
    made = Store()
    weights = embedded / "weights"
    weights.write_text("weights")
    for name in ("good", "better"):
        tags = {"sfd.key": name, "sfd.evaluation": "e", "sfd.protocol": '{"samples": 400}'}
        run = made.create(RunSpec("sfd", {}, {"sfd.kind": "variant"}), tags)
        made.send_data(run, [DataSet("folder-64px-train", "training", "abc", 1234, 3, "images", {}, "CC0 1.0")])
        made.send_model(run, {"weights": weights})
    return made


def candidate(sweep: str, run_key: str, value: float, measure: str = "fd_x of 400 samples") -> Candidate:
    return Candidate(sweep, "sfd", run_key, "e", "fd_x", value, measure, "0123abcd", {"outputs/train/sfd": "hash"})


def run_of(store: Store, alias: str) -> str:
    """Return the key of the training whose model an alias names."""
    from mlflow import MlflowClient  # noqa: PLC0415 - only the tests that run pay for it

    client = MlflowClient(store.uri)
    version = client.get_model_version_by_alias("semantic-first-diffusion", alias)
    return str(client.get_run(version.run_id).data.tags["sfd.key"])


def test_the_champion_is_the_best_of_what_was_measured_alike(store: Store) -> None:
    assert register_best(store, candidate("first", "good", 20.0)) == "models:/semantic-first-diffusion@champion"
    assert register_best(store, candidate("second", "better", 10.0)) == "models:/semantic-first-diffusion@champion"
    assert register_best(store, candidate("first", "good", 20.0)) == "models:/semantic-first-diffusion@first"
    assert [run_of(store, alias) for alias in ("first", "second", "champion")] == ["good", "better", "better"]
    assert register_best(store, candidate("third", "good", 15.0, "fd_x of 1000 samples")).endswith("@champion")
    assert run_of(store, "champion") == "good"


def test_a_server_that_does_not_tell_the_champion_keeps_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient, MlflowException  # noqa: PLC0415

    def fail(*_: object) -> None:
        raise MlflowException("the database is locked")

    register_best(store, candidate("second", "better", 10.0))
    with monkeypatch.context() as patched:
        for question in ("get_model_version", "get_model_version_by_alias"):
            patched.setattr(MlflowClient, question, fail)
        with pytest.raises(MlflowException, match="locked"):
            register_best(store, candidate("first", "good", 20.0))
    assert run_of(store, "champion") == "better"


def test_a_version_says_what_made_it_and_a_run_that_is_not_there_is_none(store: Store) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415

    register_best(store, candidate("first", "good", 20.0))
    version = MlflowClient(store.uri).get_model_version_by_alias("semantic-first-diffusion", "champion")
    assert version.tags["sfd.commit"] == "0123abcd"
    assert version.tags["dvc.outputs/train/sfd"] == "hash"
    assert version.tags["sfd.measure"] == "fd_x of 400 samples"
    assert "git checkout 0123abcd" in version.description
    assert "| data | folder-64px-train: 1,234 images, digest `abc` |" in version.description
    assert "| licence of the data | CC0 1.0 |" in version.description
    assert '| protocol | `{"samples": 400}` |' in version.description
    assert register_best(store, candidate("first", "elsewhere", 1.0)) is None
