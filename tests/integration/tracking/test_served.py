"""The denoiser as an MLflow model, with a real (untrained) denoiser and texture VAE."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from emoji import emoji
from safetensors.torch import save_file

from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import OUTPUTS, file_digest
from sfd_core.latents.composite import ChannelStatistics, LatentStatistics
from sfd_core.latents.identity import STATISTICS_FILE, LatentIdentity
from sfd_core.models.denoisers.factory import LatentSpec, build_denoiser
from sfd_core.models.vaes.texture_vae import TextureVAE, TextureVAEShape
from sfd_core.sampling.artifact import DenoiserManifest, SnapshotRecord
from sfd_core.tracking.live import history_key
from sfd_core.tracking.project import evaluation_key, track_project
from sfd_core.tracking.registry import Candidate, register_best
from sfd_core.tracking.served import _load_pyfunc
from sfd_core.tracking.store import ARCHIVE, Store

PARAMS = emoji()
CLASSES = ("a", "b", "c")
TABLE = pd.DataFrame({"label": [0, 1], "seed": [3, 3], "guidance": [1.0, 1.0], "evaluations": [4, 4]})
LATENT = LatentSpec(texture_channels=4, semantic_channels=2, grid=4, token_channels=0)


def write_project(outputs: Path) -> None:
    """Write an untrained texture VAE and denoiser `sfd` as their stages would."""
    vae_dir, train = outputs / "texture_vae", outputs / "train" / "sfd"
    vae_dir.mkdir(parents=True)
    (train / "snapshots").mkdir(parents=True)
    TextureVAE(TextureVAEShape(LATENT.texture_channels, 8, 16, 1)).save(vae_dir)
    variant = PARAMS.variants["sfd"]
    save_file(build_denoiser(variant, LATENT, len(CLASSES)).state_dict(), train / "snapshots" / "step-00000010.safetensors")
    channels = [ChannelStatistics(torch.zeros(n), torch.ones(n)) for n in (LATENT.texture_channels, LATENT.semantic_channels)]
    LatentStatistics(*channels).save(train / STATISTICS_FILE)
    texture_vae = json.loads((vae_dir / "model.json").read_text())["identity"]
    identity = LatentIdentity(texture_vae, {}, {}, file_digest(train / STATISTICS_FILE), "latents")
    snapshots = [SnapshotRecord(10, 640, "snapshots/step-00000010.safetensors")]
    DenoiserManifest("sfd", variant, LATENT, CLASSES, identity, 1, 1, snapshots).write(train)
    for folder in (vae_dir, train):
        (folder / "history.csv").write_text("step,images_seen,seconds,loss\n10,640,1.0,0.5\n")


def test_rows_are_images_that_depend_on_their_own_label_and_seed(project: Path) -> None:
    write_project(OUTPUTS)
    model = _load_pyfunc(str(as_model_folder(project)))
    images = model.predict(pd.DataFrame({"label": [0, 2, 0], "seed": [5, 5, 6]}))
    assert (images.shape, images.dtype) == ((3, 3, 32, 32), np.uint8)
    assert np.array_equal(model.predict(pd.DataFrame({"label": [0], "seed": [5]})), images[:1])
    assert not np.array_equal(images[0], images[2])


def as_model_folder(project: Path) -> Path:
    folder = project / "model"
    folder.mkdir()
    (folder / "train").symlink_to((OUTPUTS / "train" / "sfd").absolute())
    (folder / "texture_vae").symlink_to((OUTPUTS / "texture_vae").absolute())
    return folder


def test_a_table_without_its_columns_is_told(project: Path) -> None:
    write_project(OUTPUTS)
    with pytest.raises(ConfigError, match="lacks the columns seed"):
        _load_pyfunc(str(as_model_folder(project))).predict(pd.DataFrame({"label": [0]}))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"label": 0, "seed": 1, "guidnace": 2.0}, "unknown columns guidnace"),
        ({"label": 1.7, "seed": 1}, "labels 1.7"),
        ({"label": 0, "seed": 1.5}, "seed"),
        ({"label": "unicorn", "seed": 1}, "labels unicorn"),
    ],
)
def test_a_row_that_means_nothing_is_refused(project: Path, row: dict[str, object], said: str) -> None:
    write_project(OUTPUTS)
    with pytest.raises(ConfigError, match=said):
        _load_pyfunc(str(as_model_folder(project))).predict(pd.DataFrame([row]))


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
def test_the_logged_model_loads_and_samples(embedded: Path) -> None:
    import mlflow  # noqa: PLC0415 - only the tests that run pay for it

    write_project(OUTPUTS)
    tracked = track_project(PARAMS.model_copy(update={"active": ["sfd"]}))
    assert tracked.failed == {}
    store = Store()
    models = mlflow.MlflowClient(store.uri).search_logged_models([store.experiment_id])
    assert [model.name for model in models] == ["denoiser"]
    assert models[0].source_run_id == tracked.completed["sfd"]
    loaded = mlflow.pyfunc.load_model(models[0].model_uri)
    images = loaded.predict(TABLE)
    assert (images.shape, images.dtype) == ((2, 3, 32, 32), np.uint8)
    assert np.array_equal(images, _load_pyfunc(str(as_model_folder(embedded))).predict(TABLE))
    assert loaded.metadata.get_input_schema().input_names() == list(TABLE)
    assert list(loaded.input_example) == list(TABLE)
    for wrong in (TABLE.rename(columns={"guidance": "guidnace"}), TABLE.assign(label=[0.5, 1])):
        with pytest.raises(mlflow.MlflowException, match=r"guidance|label"):
            loaded.predict(wrong)
    script = "import mlflow, sys; mlflow.pyfunc.load_model(sys.argv[1]); import sfd_core; print(sfd_core.__file__)"
    command = [sys.executable, "-P", "-c", script, models[0].model_uri]
    printed = subprocess.run(command, env=os.environ | {"MLFLOW_TRACKING_URI": store.uri}, stdout=subprocess.PIPE, check=True)
    assert printed.stdout.decode().strip().endswith(f"code/{ARCHIVE}/sfd_core/__init__.py")


@contextmanager
def serving(model: str, uri: str, log: Path) -> Iterator[str]:
    """Run `mlflow models serve` in a process group of its own and yield the address of its invocations."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    command = [
        Path(sys.executable).parent / "mlflow", "models", "serve", "--model-uri", model, "--env-manager", "local",
        "--port", address.rpartition(":")[2], "--workers", "1",
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "PATH": path,
    }
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and server.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{address}/ping", timeout=5):
                yield f"{address}/invocations"
                return
            time.sleep(1)
        pytest.fail(f"the model is not served:\n{log.read_text()[-3000:]}")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def ask(address: str, table: pd.DataFrame) -> urllib.request.Request:
    body = json.dumps({"dataframe_records": table.to_dict(orient="records")}).encode()
    return urllib.request.Request(address, body, {"Content-Type": "application/json"})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
def test_the_champion_answers_a_request_with_images(embedded: Path) -> None:
    write_project(OUTPUTS)
    evaluate = OUTPUTS / "evaluate" / "sfd"
    evaluate.mkdir(parents=True)
    (evaluate / "numbers.json").write_text('{"final": {}}')
    track_project(PARAMS.model_copy(update={"active": ["sfd"]}))
    key = history_key(OUTPUTS / "train" / "sfd" / "history.csv")
    best = Candidate("first", "sfd", key, evaluation_key(evaluate), "fd_x", 1.0, "fd_x of 4 samples", "0123abcd", {})
    model = register_best(Store(), best)
    assert model == "models:/semantic-first-diffusion@champion"
    with serving(model, Store().uri, embedded / "log") as address:
        with urllib.request.urlopen(ask(address, TABLE), timeout=300) as answer:
            images = np.array(json.load(answer)["predictions"])
        assert np.array_equal(images, _load_pyfunc(str(as_model_folder(embedded))).predict(TABLE))
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(ask(address, TABLE.rename(columns={"guidance": "guidnace"})), timeout=300)
