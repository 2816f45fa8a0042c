"""A representation autoencoder in the format of diffusers, against diffusers' own class."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import random_rae
from safetensors.torch import load_file, save_file

from sfd_core.experiment.params import DiffusersVAEParams
from sfd_core.host.errors import DataError
from sfd_core.models.public.image_vae import read_published_vae
from sfd_core.models.vaes.loader import load_texture_vae
from sfd_core.models.vaes.rae import RAEVAE

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
WEIGHTS = "diffusion_pytorch_model.safetensors"


def params(folder: Path, channels: int = 128) -> DiffusersVAEParams:
    return DiffusersVAEParams(
        kind="diffusers", name="test-rae", weights=str(folder), subfolder=None, channels=channels, downsampling=16
    )


@pytest.fixture(scope="module")
def source() -> Any:
    """Random weights, and statistics of every position, as published files have them."""
    return random_rae()


@pytest.fixture
def folder(tmp_path: Path, source: Any) -> Path:
    source.save_pretrained(tmp_path / "rae")
    return tmp_path / "rae"


def require_same(vae: Any, source: Any) -> None:
    z = source.encode((IMAGES + 1) / 2).latent
    posterior = vae.encode(IMAGES)
    assert z.shape == (3, 128, 2, 2)
    assert torch.equal(posterior.mean, z)
    assert posterior.std.max() < 1e-6
    assert torch.equal(vae.decode(z), source.decode(z).sample * 2 - 1)


def test_a_folder_of_diffusers_is_the_same_network_and_comes_back(folder: Path, source: Any, tmp_path: Path) -> None:
    vae = read_published_vae(params(folder))
    assert isinstance(vae, RAEVAE)
    assert (vae.shape.channels, vae.shape.downsampling) == (128, 16)
    require_same(vae, source)
    (tmp_path / "out").mkdir()
    vae.save(tmp_path / "out")
    again, identity = load_texture_vae(tmp_path / "out")
    require_same(again, source)
    assert identity["name"] == "test-rae"


def test_latents_are_the_normalised_tokens_of_the_encoder(folder: Path, source: Any) -> None:
    pixels = torch.nn.functional.interpolate((IMAGES + 1) / 2, size=(28, 28), mode="bicubic")
    pixels = (pixels - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    tokens = source.encoder(pixels).last_hidden_state[:, 5:]  # after the class token and four registers
    z = tokens.transpose(1, 2).reshape(3, 128, 2, 2)
    expected = (z - source._latents_mean) / (source._latents_std + 1e-5)
    torch.testing.assert_close(read_published_vae(params(folder)).encode(IMAGES).mean, expected, rtol=1e-4, atol=1e-5)


def test_bad_files_and_other_sizes_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"128 channels at 16 pixels per position .* but texture_vae says channels 96"):
        read_published_vae(params(folder, channels=96))
    with pytest.raises(DataError, match="decodes images of 32 pixels, but these have 64; set resolution to 32"):
        read_published_vae(params(folder)).encode(torch.zeros(1, 3, 64, 64))
    config, state = json.loads((folder / "config.json").read_text()), load_file(folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config | {"encoder_input_size": 30}))
    with pytest.raises(DataError, match="no AutoencoderRAE has these sizes"):
        read_published_vae(params(folder))
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value for name, value in state.items() if name != "decoder.decoder_norm.bias"}, folder / WEIGHTS)
    with pytest.raises(DataError, match=r"missing: decoder\.decoder_norm\.bias.*give the checkpoint of an RAE"):
        read_published_vae(params(folder))
    save_file({name: value for name, value in state.items() if "_latents" not in name}, folder / WEIGHTS)
    with pytest.raises(DataError, match="the file has no _latents_mean, _latents_std"):
        read_published_vae(params(folder))
