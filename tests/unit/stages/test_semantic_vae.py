"""The stage with published weights, and tokens taken raw or standardised."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emoji import emoji_values
from numpy.typing import NDArray

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec
from sfd_core.experiment.params import SemanticVAEParams
from sfd_core.host.errors import DataError
from sfd_core.host.paths import file_digest
from sfd_core.latents.composite import ChannelStatistics, save_statistics
from sfd_core.latents.compressors import SemanticCompressors
from sfd_core.models.vaes.semantic_vae import SemanticVAE
from sfd_core.stages import semantic_vae as stage
from sfd_core.stages.semantic_vae import make_semantic_vae

CHANNELS, GRID = 12, 4
SIZES = {"channels": 3, "width": 16, "depth": 2, "heads": 4, "pca_channels": 2}


def params(**changes: Any) -> SemanticVAEParams:
    values = emoji_values()["semantic_vae"]
    optimisation = values["optimisation"] | {"steps": 2, "batch_size": 4, "warmup_steps": 1, "decay_steps": 0}
    return SemanticVAEParams.model_validate(values | SIZES | {"optimisation": optimisation} | changes)


pytestmark = pytest.mark.usefixtures("in_an_empty_project")


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of images' labels and of tokens far from mean 0 and deviation 1."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("held_out", 4)):
        write_part(tmp_path, part, 5 + 3 * rng.normal(size=(count, 2, CHANNELS, GRID, GRID)), np.arange(count) % 2)
    measured = ChannelStatistics(torch.full((CHANNELS,), 5.0), torch.full((CHANNELS,), 3.0))
    save_statistics(tmp_path / "features" / "statistics.safetensors", {"token": measured})
    return tmp_path / "prepare", tmp_path / "features"


def write_part(project: Path, part: str, tokens: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
    spec = FieldSpec("float16", tokens.shape[1:])
    with ShardWriter(project / "features" / part, {"tokens": spec}, {"encoder": {"name": "e"}}) as writer:
        writer.append(tokens=tokens.astype(np.float16))
    with ShardWriter(project / "prepare" / part, {"label": FieldSpec("int64", ())}, {}) as writer:
        writer.append(label=labels)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    vae = SemanticVAE(CHANNELS, SIZES["channels"], SIZES["width"], SIZES["depth"], SIZES["heads"])
    state = {f"module.{name}": value for name, value in vae.state_dict().items()}
    torch.save({"model_state_dict": state, "epoch": 9}, tmp_path / "semvae.pt")
    return tmp_path / "semvae.pt"


def test_published_weights_take_raw_tokens(inputs: tuple[Path, Path], published: Path, tmp_path: Path) -> None:
    make_semantic_vae(params(weights=str(published), standardise=False), *inputs, tmp_path / "out")
    compressors, identity = SemanticCompressors.load(tmp_path / "out")
    assert identity["source"] == file_digest(published)
    torch.manual_seed(0)
    source = SemanticVAE(CHANNELS, SIZES["channels"], SIZES["width"], SIZES["depth"], SIZES["heads"])
    tokens = 5 + torch.randn(2, CHANNELS, GRID, GRID)
    assert torch.equal(compressors.standardised(tokens), tokens)
    torch.testing.assert_close(compressors.vae.encode(compressors.standardised(tokens)).mean, source.eval().encode(tokens).mean)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["mse_held_out"] > 9, "of raw tokens, whose variance is 9 and mean 5"
    assert "seconds" not in metrics
    assert (tmp_path / "out" / "history.csv").read_text().count("\n") == 1


@pytest.mark.parametrize(("standardise", "mean", "std"), [(True, 5.0, 3.0), (False, 0.0, 1.0)])
def test_trained_weights_take_tokens_as_told(
    inputs: tuple[Path, Path], tmp_path: Path, standardise: bool, mean: float, std: float
) -> None:
    make_semantic_vae(params(standardise=standardise), *inputs, tmp_path / "out")
    compressors, identity = SemanticCompressors.load(tmp_path / "out")
    assert compressors.statistics.mean.unique().tolist() == [mean]
    assert compressors.statistics.std.unique().tolist() == [std]
    assert "source" not in identity
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["images_seen"] == 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"channels": 4}, "channels: 3 instead of 4"),
        ({"width": 32}, "width: 16 instead of 32"),
        ({"depth": 1}, "depth: 2 instead of 1"),
    ],
)
def test_weights_of_other_sizes_are_refused(
    inputs: tuple[Path, Path], published: Path, tmp_path: Path, changes: dict[str, int], said: str
) -> None:
    with pytest.raises(DataError, match=rf"semvae\.pt holds .*{said}"):
        make_semantic_vae(params(weights=str(published), standardise=False, **changes), *inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_for_another_encoder_are_refused(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    other = SemanticVAE(2 * CHANNELS, SIZES["channels"], SIZES["width"], SIZES["depth"], SIZES["heads"])
    torch.save({"model_state_dict": other.state_dict()}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="token channels: 24 instead of 12"):
        make_semantic_vae(params(weights=str(tmp_path / "other.pt"), standardise=False), *inputs, tmp_path / "out")


def test_the_probe_sees_every_class_of_images_sorted_by_class(
    inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = 5 + 3 * np.random.default_rng(1).normal(size=(4, 1, CHANNELS, 1, 1))
    labels = np.repeat(np.arange(4), 16)
    for part in ("train", "held_out"):
        write_part(tmp_path / "sorted", part, np.broadcast_to(means[labels], (64, 2, CHANNELS, GRID, GRID)), labels)
    shutil.copy(inputs[1] / "statistics.safetensors", tmp_path / "sorted" / "features")
    monkeypatch.setattr(stage, "PROBE_IMAGES", 20)
    make_semantic_vae(params(), tmp_path / "sorted" / "prepare", tmp_path / "sorted" / "features", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["linear_probe_top1"] == 1.0
