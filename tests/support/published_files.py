"""Files of weights and statistics as others publish them, with random values: their names, shapes and layout, at any width."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from latent_diffusion import f16
from safetensors.torch import save_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


def write_texture_vae(path: Path, width: int, seed: int) -> Path:
    """Write an f16d32 KL VAE as latent diffusion's trainer does; the published ones have width 128."""
    torch.manual_seed(seed)
    vae = f16(width, 32)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if parameter.dim() == 4 and "quant_conv" not in name:
                nn.init.kaiming_normal_(parameter)
    loss = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(64, 3, 4, 4)}
    torch.save({"epoch": 49, "global_step": 1000, "state_dict": dict(vae.state_dict()) | loss}, _placed(path))
    return path


def random_rae() -> Any:
    """Return diffusers' RAE of images of 32 pixels, with random weights and, as in public files, statistics of every position.

    Its latent has 128 channels on a grid of 2; `save_pretrained` writes it.
    """
    from diffusers.models.autoencoders.autoencoder_rae import AutoencoderRAE  # noqa: PLC0415 - takes seconds

    torch.manual_seed(0)
    sizes = {"encoder_hidden_size": 128, "encoder_num_hidden_layers": 2, "encoder_input_size": 28, "decoder_hidden_size": 64}
    decoder = {"decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 64}
    statistics = {"latents_mean": torch.randn(128, 2, 2), "latents_std": torch.rand(128, 2, 2) + 0.5}
    return AutoencoderRAE(**sizes, **decoder, **statistics).eval().requires_grad_(False)


def write_encoder(path: Path, name: str) -> Path:
    """Write a timm model's `model.safetensors`, at its native input size."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, _placed(path))
    return path


def inception_state() -> dict[str, Tensor]:
    """Return weights of torch-fidelity's Inception, of its names and shapes, that keep features of the order of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], "unused")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return dict(network.state_dict())


def write_inception(path: Path) -> Path:
    """Write torch-fidelity's file of Inception weights."""
    torch.save(inception_state(), _placed(path))
    return path


def write_denoiser(path: Path, state: Mapping[str, Tensor]) -> Path:
    """Write a checkpoint as the public training code of LightningDiT and SFD does: weights wrapped, averaged ones beside."""
    wrapped = {f"module.{name}": value for name, value in state.items()}
    other = {name: torch.zeros_like(value) for name, value in wrapped.items()}
    torch.save(
        {"model": other, "ema": wrapped, "opt": {"state": {}}, "args": argparse.Namespace(image_size=256)}, _placed(path)
    )
    return path


def write_latent_statistics(path: Path, mean: Tensor, std: Tensor) -> Path:
    """Write `latents_stats.pt` as the public code does: (1, C, 1, 1) each."""
    torch.save({"mean": mean[None, :, None, None], "std": std[None, :, None, None]}, _placed(path))
    return path


def _placed(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
