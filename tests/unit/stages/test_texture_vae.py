"""The stage with a published VAE: no training, the same files."""

import csv
import json
from pathlib import Path

import pytest
import torch
from latent_diffusion import LatentDiffusionVAE, f16
from PIL import Image

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.experiment.params import LDMVAEParams
from sfd_core.host.errors import DataError
from sfd_core.host.paths import file_digest
from sfd_core.models.vaes.loader import load_texture_vae
from sfd_core.stages.texture_vae import make_texture_vae
from sfd_core.tracking.project import _vae_key


@pytest.fixture(scope="module")
def source() -> LatentDiffusionVAE:
    torch.manual_seed(0)
    return f16()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare")
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with ShardWriter(folder / "held_out", {"image": FieldSpec("uint8", (3, 32, 32))}, {}) as writer:
        writer.append(image=images.numpy())
    return folder


@pytest.fixture
def params(source: LatentDiffusionVAE, tmp_path: Path) -> LDMVAEParams:
    torch.save({"state_dict": source.state_dict()}, tmp_path / "vae.ckpt")
    return LDMVAEParams(kind="ldm", name="test-vae", weights=str(tmp_path / "vae.ckpt"), channels=4, downsampling=16)


def test_all_files_are_written(params: LDMVAEParams, source: LatentDiffusionVAE, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "texture_vae"
    make_texture_vae(params, prepared, out)
    files = {"model.safetensors", "model.json", "metrics.json", "history.csv", "reconstructions.png"}
    assert {path.name for path in out.iterdir()} == files

    images = torch.from_numpy(ShardReader(prepared / "held_out")["image"][:]) / 127.5 - 1
    mean = source.moments(images)[:, :4]
    errors = (images - source.decode(mean).clamp(-1, 1)).square().flatten(1).mean(1)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["psnr_held_out"] == pytest.approx((10 * torch.log10(4 / errors)).mean().item(), abs=1e-3)
    assert metrics["parameters"] == sum(parameter.numel() for parameter in source.parameters())
    assert "seconds" not in metrics, "nothing was trained"

    with (out / "history.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1
    assert {"step", "loss"} <= set(rows[0])
    with Image.open(out / "reconstructions.png") as picture:
        assert picture.size == (3 * 34 + 2, 2 * 34 + 2)
    _, identity = load_texture_vae(out)
    assert (identity["name"], identity["source"]) == ("test-vae", file_digest(Path(params.weights)))


def test_a_bad_file_leaves_nothing_behind(params: LDMVAEParams, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vae\.ckpt holds .* \(f16d4\), but texture_vae says .* \(f16d32\)"):
        make_texture_vae(params.model_copy(update={"channels": 32}), prepared, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_untrained_vaes_are_told_apart_by_their_weights(
    params: LDMVAEParams, source: LatentDiffusionVAE, prepared: Path, tmp_path: Path
) -> None:
    make_texture_vae(params, prepared, tmp_path / "one")
    state = source.state_dict()
    state["decoder.conv_out.bias"] = state["decoder.conv_out.bias"] + 1
    torch.save({"state_dict": state}, params.weights)
    make_texture_vae(params, prepared, tmp_path / "other")
    assert (tmp_path / "one" / "history.csv").read_text() == (tmp_path / "other" / "history.csv").read_text()
    assert _vae_key(tmp_path / "one") != _vae_key(tmp_path / "other")
