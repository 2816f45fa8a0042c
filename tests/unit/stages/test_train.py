"""Inputs of a training are checked before the first step, and nothing is written when they are bad."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small_stages
import torch
from denoisers import CLASSES, variant, write_latents
from emoji import emoji_values
from projects import LEAST_COST, PROBE

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec
from sfd_core.experiment.params import RepaParams, parse_params
from sfd_core.host import paths
from sfd_core.host.errors import ConfigError, DataError, IdentityError, NumericsError, ResourceError
from sfd_core.host.processes import ALONE
from sfd_core.latents.composite import ChannelStatistics, save_statistics
from sfd_core.sampling.artifact import load_denoiser
from sfd_core.stages.schedule import find_path
from sfd_core.stages.train import TrainFolders, TrainInputs, train_variant
from sfd_core.training.loop import PLAIN_ENGINE

IMAGES, GRID = 12, 4
CHANNELS = {"z_tex": 4, "z_sem": 2, "z_pca": 3}
TRAIN = small_stages.TRAIN.model_copy(update={"snapshots": 2})

pytestmark = pytest.mark.usefixtures("in_an_empty_project")


def encoded(folder: Path, poison: str | None = None) -> Path:
    """Write what the encode stage writes, with random latents."""
    rng = np.random.default_rng(0)
    latents = {name: rng.normal(size=(IMAGES, 2, count, GRID, GRID)).astype(np.float32) for name, count in CHANNELS.items()}
    if poison is not None:
        latents[poison][7, 0, 0, 0, 0] = np.nan
    names = {"z_tex": "texture", "z_sem": "vae", "z_pca": "pca"}
    statistics = {names[name]: ChannelStatistics(torch.zeros(count), torch.ones(count)) for name, count in CHANNELS.items()}
    write_latents(folder, latents, statistics, {"name": "t"}, prepare="p")
    return folder


def folders(project: Path) -> TrainFolders:
    return TrainFolders(*(project / stage for stage in ("encode", "features", "prepare", "semantic_vae")))


def tokens(folder: Path, prepare: str = "p") -> Path:
    rng = np.random.default_rng(1)
    with ShardWriter(folder / "train", {"tokens": FieldSpec("float16", (2, 5, GRID, GRID))}, {"prepare": prepare}) as writer:
        writer.append(tokens=rng.normal(size=(IMAGES, 2, 5, GRID, GRID)).astype(np.float16))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"delta_t": 0.0},
        {"mask_clamped": True},
        {"semantic": "pca"},
        {"semantic": "none", "delta_t": 0.0},
        {"model": "dit", "semantic": "none", "delta_t": 0.0, "cosine_weight": 0.0},
        {"repa": RepaParams(weight=0.5, mode="cosine+mse", targets="encoder", block=2, width=16)},
    ],
    ids=["sfd", "sync", "masked", "redi", "texture", "dit", "repa"],
)
def test_every_kind_of_variant_trains_to_an_artifact_that_loads(changes: dict[str, object], tmp_path: Path) -> None:
    chosen = variant(**changes)
    encoded(tmp_path / "encode")
    tokens(tmp_path / "features")
    inputs = TrainInputs.open(chosen, folders(tmp_path))
    train_variant("v", chosen, TRAIN, inputs, tmp_path / "out")
    denoiser = load_denoiser(tmp_path / "out")
    assert denoiser.snapshot.step == 3
    assert denoiser.identity == inputs.identity
    assert denoiser.classes == CLASSES
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["skipped_steps"] == 0
    header = (tmp_path / "out" / "history.csv").read_text().splitlines()[0]
    assert ("repa" if chosen.family == "flow" else "vlb") in header
    assert not list(Path(".sfd/resume/train").iterdir()), "resumable checkpoints are deleted once the output is written"


def test_an_artifact_says_whether_it_was_trained_without_labels_too(tmp_path: Path) -> None:
    chosen = variant()
    encoded(tmp_path / "encode")
    inputs = TrainInputs.open(chosen, folders(tmp_path))
    for number, (changes, knows) in enumerate([({}, True), ({"class_dropout": 0}, False), ({"conditional": False}, True)]):
        train_variant("v", chosen, TRAIN.model_copy(update=changes), inputs, tmp_path / f"out{number}")
        assert load_denoiser(tmp_path / f"out{number}").knows_null_class is knows


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    encoded(tmp_path / "encode")
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        chosen = variant(seed=seed)
        train_variant("v", chosen, TRAIN, TrainInputs.open(chosen, folders(tmp_path)), tmp_path / f"out{number}")
        weights.append(load_denoiser(tmp_path / f"out{number}").model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


@pytest.mark.parametrize("field", ["z_tex", "z_sem"])
def test_latents_with_nan_are_refused(field: str, tmp_path: Path) -> None:
    encoded(tmp_path / "encode", poison=field)
    with pytest.raises(NumericsError, match=rf"row 7 of '{field}'"):
        TrainInputs.open(variant(), folders(tmp_path))


def test_latents_that_do_not_match_their_hash_are_refused(tmp_path: Path) -> None:
    folder = encoded(tmp_path / "encode")
    (file,) = (folder / "train").glob("z_tex*.npy")
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(DataError, match=file.name):
        TrainInputs.open(variant(), folders(tmp_path))


def test_statistics_of_another_run_are_refused(tmp_path: Path) -> None:
    folder = encoded(tmp_path / "encode")
    save_statistics(folder / "statistics.safetensors", {"texture": ChannelStatistics(torch.ones(4), torch.ones(4))})
    with pytest.raises(DataError, match="recorded hash"):
        TrainInputs.open(variant(), folders(tmp_path))


def test_latents_of_another_run_are_refused(tmp_path: Path) -> None:
    folder, other = encoded(tmp_path / "encode"), encoded(tmp_path / "other")
    identity = json.loads((other / "identity.json").read_text()) | {"latents": "0" * 64}
    (folder / "identity.json").write_text(json.dumps(identity))
    with pytest.raises(IdentityError, match=r"identity\.json"):
        TrainInputs.open(variant(), folders(tmp_path))


def test_tokens_of_other_images_are_refused(tmp_path: Path) -> None:
    chosen = variant(repa=RepaParams(weight=0.5, mode="cosine", targets="encoder", block=2, width=16))
    encoded(tmp_path / "encode")
    tokens(tmp_path / "features", prepare="q")
    with pytest.raises(IdentityError, match="tokens of other images"):
        TrainInputs.open(chosen, folders(tmp_path))


def test_a_batch_larger_than_the_data_set_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    encoded(tmp_path / "encode")
    inputs = TrainInputs.open(variant(), folders(tmp_path))
    large = TRAIN.model_copy(update={"optimisation": TRAIN.optimisation.model_copy(update={"batch_size": 13})})
    with pytest.raises(ConfigError, match="batch_size 13"):
        train_variant("v", variant(), large, inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not Path(".sfd/resume").exists()


@pytest.fixture
def weight_bytes(tmp_path: Path) -> int:
    """Bytes of one copy of the weights."""
    encoded(tmp_path / "encode")
    inputs = TrainInputs.open(variant(), folders(tmp_path))
    train_variant("v", variant(), TRAIN, inputs, tmp_path / "measured")
    return 4 * json.loads((tmp_path / "measured" / "model.json").read_text())["parameters"]


@pytest.mark.parametrize(
    ("train", "engine", "copies"),
    [({}, {}, 14), ({"power_emas": [0.05, 0.1]}, {}, 26), ({}, {"keep_every": 1}, 26), ({}, {"keep_last": 4}, 22)],
)
def test_room_for_all_that_a_training_keeps_is_asked_for_before_it_starts(
    train: dict[str, Any], engine: dict[str, Any], copies: int, weight_bytes: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    inputs = TrainInputs.open(variant(), folders(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=copies * weight_bytes - 1))
    settings = PLAIN_ENGINE.model_copy(update=engine)
    with pytest.raises(ResourceError, match="stage train, variant v needs"):
        train_variant("v", variant(), TRAIN.model_copy(update=train), inputs, tmp_path / "out", settings)


def test_what_a_killed_training_left_is_not_asked_for_again(
    weight_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = TrainInputs.open(variant(), folders(tmp_path))
    kept = train_variant("v", variant(), TRAIN, inputs, tmp_path / "out", recorded=False)
    left = 14 * weight_bytes - sum(file.stat().st_size for file in kept.path.rglob("*") if file.is_file())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=left))
    train_variant("v", variant(), TRAIN, inputs, tmp_path / "out")


@pytest.mark.parametrize("schedule", [LEAST_COST, PROBE | {"kind": "learned", "knots": 2, "kinetic": 0.1}])
def test_a_probe_is_kept_until_its_path_is_written(
    schedule: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edited() -> None:
        raise ConfigError("train of params.yaml changed")

    encoded(tmp_path / "encode")
    monkeypatch.setattr(paths, "_CHECKS", [edited])
    values = emoji_values()
    values["train"] = TRAIN.model_dump(mode="json") | {"optimisation": TRAIN.optimisation.model_dump(mode="json")}
    params = parse_params(values | {"schedule": schedule | {"steps": 3}})
    with pytest.raises((ConfigError, DataError)):  # the held-out latents of the error field are missing, too
        find_path(params, folders(tmp_path), Path("outputs/schedule"), ALONE)
    assert list(Path(".sfd/resume").glob("*/*/step-*"))
