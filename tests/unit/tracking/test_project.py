import json
import shutil
import time
from pathlib import Path

import pytest
from emoji import emoji_values
from synthetic_outputs import train_again, write_outputs

from sfd_core.experiment.params import Params, TrainedVAEParams, parse_params
from sfd_core.host.paths import OUTPUTS, write_json
from sfd_core.tracking.project import _model, track_project
from sfd_core.tracking.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")

ALL = {"texture_vae", "semantic_vae", "dit", "lightningdit", "sync", "sfd"}


@pytest.fixture
def params() -> Params:
    values = emoji_values()
    guided = {"kind": "guidance", "variant": "sfd", "guidance": "cfg", "guide_step": None, "parts": "both", "scales": [1.5]}
    return parse_params(values | {"studies": {"guided": guided}})


def test_every_finished_vae_and_variant_gets_one_run(embedded: Path, params: Params) -> None:
    write_outputs(OUTPUTS, params)
    first = track_project(params)
    assert (set(first.completed), first.failed) == (ALL, {})
    second = track_project(params)
    assert (second.completed, second.failed) == ({}, {})
    (embedded / ".sfd" / "tracked.json").unlink()
    assert track_project(params).completed == first.completed
    assert len(Store().find({"sfd.kind": "variant"})) == 4


def test_a_store_that_was_emptied_gets_all_runs_again(embedded: Path, params: Params, empty_store: Path) -> None:
    write_outputs(OUTPUTS, params)
    track_project(params)
    shutil.copyfile(empty_store, embedded / ".sfd" / "mlflow.db")
    assert set(track_project(params).completed) == ALL
    assert len(Store().find({"sfd.kind": "variant"})) == 4


def test_another_experiment_of_the_store_gets_all_runs_too(
    embedded: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_outputs(OUTPUTS, params)
    first = track_project(params)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    assert (track_project(params).completed.keys(), track_project(params).completed) == (first.completed.keys(), {})


def test_curves_and_final_numbers_of_the_evaluation_are_in_the_run(embedded: Path, params: Params) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415 - only the tests that run pay for it

    write_outputs(OUTPUTS, params)
    run_id = track_project(params).completed["sfd"]
    client = MlflowClient(Store().uri)
    history = client.get_metric_history(run_id, "evaluate/fd_efficientnet_lite2")
    assert [metric.step for metric in history] == [300, 600, 900, 1200, 1500]
    metrics = client.get_run(run_id).data.metrics
    assert metrics["evaluate/images_seen"] == 1500 * 64
    assert {"final/fd_efficientnet_lite2", "oracle/fd_efficientnet_lite2"} <= set(metrics)
    protocol = json.loads(client.get_run(run_id).data.tags["sfd.protocol"])
    assert protocol["all"]["solver"] == "euler"
    assert set(protocol) == {"all", *(name.removeprefix("final/") for name in metrics if name.startswith("final/"))}
    assert [file.path for file in client.list_artifacts(run_id, "figures")] == ["figures/neighbours.png"]
    assert [file.path for file in client.list_artifacts(run_id, "studies/guided")] == ["studies/guided/curve.csv"]


def test_a_run_has_the_parameters_that_made_its_variant(embedded: Path, params: Params) -> None:
    write_outputs(OUTPUTS, params)
    sampler = params.evaluate.sampler.model_copy(update={"evaluations": 50})
    own = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"sampler": sampler})})
    completed = track_project(params, own={"sfd": own}).completed
    evaluations = {name: Store().run(completed[name]).params["evaluate.sampler.evaluations"] for name in ("sfd", "sync")}
    assert evaluations == {"sfd": "50", "sync": str(params.evaluate.sampler.evaluations)}


def test_the_forecast_of_a_long_training_is_in_the_run(embedded: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFD_HOUR_PRICE", "2")
    write_outputs(OUTPUTS, params)
    steps = params.train.optimisation.steps
    for folder in (OUTPUTS / "train" / "sfd", OUTPUTS / "texture_vae"):
        (folder / "history.csv").write_text(f"step,images_seen,seconds,loss\n200,1,3600,1\n{steps},2,9000,0.5\n")
    completed = track_project(params).completed
    metrics = Store().run(completed["sfd"]).metrics
    assert metrics["forecast/hours"] == pytest.approx(steps / 200)
    assert metrics["forecast/cost"] == pytest.approx(2 * steps / 200)
    vae = params.texture_vae
    assert isinstance(vae, TrainedVAEParams)
    assert Store().run(completed["texture_vae"]).metrics["forecast/hours"] == pytest.approx(vae.optimisation.steps / 200)
    assert "forecast/hours" not in Store().run(completed["dit"]).metrics


def test_only_what_changed_is_sent_again(embedded: Path, params: Params) -> None:
    write_outputs(OUTPUTS, params)
    first = track_project(params)
    with (OUTPUTS / "evaluate" / "sfd" / "numbers.json").open("a") as file:
        file.write("\n")
    second = track_project(params)
    assert set(second.completed) == {"sfd"}
    assert second.completed["sfd"] != first.completed["sfd"]


def test_what_a_complete_run_lacks_is_sent_into_it(embedded: Path, params: Params) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415

    write_outputs(OUTPUTS, params)
    study = OUTPUTS / "studies" / "sfd" / "guided"
    study.rename(OUTPUTS / "later")
    first = track_project(params).completed["sfd"]
    client = MlflowClient(Store().uri)
    ended = client.get_run(first).info.end_time
    (OUTPUTS / "later").rename(study)
    assert track_project(params).completed == {"sfd": first}
    assert [file.path for file in client.list_artifacts(first, "studies/guided")] == ["studies/guided/curve.csv"]
    assert client.get_run(first).info.end_time == ended
    assert len(client.search_logged_models([Store().experiment_id], filter_string=f"source_run_id = '{first}'")) <= 1


def test_a_training_has_no_numbers_of_weights_before_it(embedded: Path, params: Params) -> None:
    write_outputs(OUTPUTS, params)
    (OUTPUTS / "evaluate" / "sfd" / "grids").mkdir()
    shutil.copyfile(
        OUTPUTS / "evaluate" / "sfd" / "neighbours.png", OUTPUTS / "evaluate" / "sfd" / "grids" / "step-0000300.png"
    )
    train_again(OUTPUTS, "sfd")
    completed = track_project(params).completed
    found = {name: set(Store().run(completed[name]).metrics) for name in ("sfd", "sync")}
    of_numbers = ("final/fd_", "oracle/", "evaluate/")
    assert not [name for name in found["sfd"] if name.startswith(of_numbers)]
    assert [name for name in found["sync"] if name.startswith(of_numbers)]
    from mlflow import MlflowClient  # noqa: PLC0415 - only the tests that run pay for it

    assert not MlflowClient(Store().uri).list_artifacts(completed["sfd"], "figures")


def test_a_deleted_store_is_filled_again(embedded: Path, params: Params, empty_store: Path) -> None:
    write_outputs(OUTPUTS, params)
    track_project(params)
    shutil.copyfile(empty_store, embedded / "other.db")
    (embedded / ".sfd" / "mlflow.db").unlink()
    shutil.rmtree(OUTPUTS / "evaluate")
    shutil.rmtree(OUTPUTS / "train")
    (embedded / "other.db").replace(embedded / ".sfd" / "fresh.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{embedded / '.sfd' / 'fresh.db'}")
        assert set(track_project(params).completed) == {"texture_vae", "semantic_vae"}


@pytest.mark.usefixtures("no_mlflow")
def test_nothing_finished_needs_no_mlflow(project: Path, params: Params) -> None:
    tracked = track_project(params)
    assert (tracked.completed, tracked.failed) == ({}, {})


def test_nothing_new_needs_no_mlflow(embedded: Path, params: Params, request: pytest.FixtureRequest) -> None:
    write_outputs(OUTPUTS, params)
    track_project(params)
    request.getfixturevalue("no_mlflow")
    tracked = track_project(params)
    assert (tracked.completed, tracked.failed) == ({}, {})


@pytest.mark.usefixtures("no_mlflow")
def test_a_server_that_is_down_is_told_at_once_and_raises_nothing(
    project: Path, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_outputs(OUTPUTS, params)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    started = time.monotonic()
    tracked = track_project(params)
    assert time.monotonic() - started < 4
    assert set(tracked.failed) == ALL
    assert "`sfd track` sends it again" in capsys.readouterr().err
    assert not (project / ".sfd" / "tracked.json").exists()


def test_a_denoiser_and_a_vae_that_do_not_belong_together_make_no_model(tmp_path: Path) -> None:
    train, texture_vae = tmp_path / "train", tmp_path / "texture_vae"
    (train / "snapshots").mkdir(parents=True)
    texture_vae.mkdir()
    for file in (
        train / "statistics.safetensors",
        train / "snapshots" / "step-1.safetensors",
        texture_vae / "model.safetensors",
    ):
        file.touch()
    write_json(train / "model.json", {"identity": {"texture_vae": {"weights": "a"}}})
    write_json(texture_vae / "model.json", {"identity": {"weights": "a"}})
    assert len(_model(train, texture_vae)) == 5
    write_json(texture_vae / "model.json", {"identity": {"weights": "b"}})
    assert _model(train, texture_vae) == {}
