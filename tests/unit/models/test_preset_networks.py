"""The networks of every committed preset at full size, without weights: sizes as published, shapes from pixels to velocity."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from sfd_core.data.store.shards import FieldSpec
from sfd_core.experiment.params import Params, VariantParams
from sfd_core.experiment.presets import load_preset, preset_names
from sfd_core.latents.stored import latent_fields
from sfd_core.models.denoisers.dit import DiT
from sfd_core.models.denoisers.factory import LatentSpec, build_denoiser, flops_per_image, parameter_count
from sfd_core.models.denoisers.lightningdit import LightningDiT
from sfd_core.models.vaes.semantic_vae import SemanticVAE

PRESETS = Path(__file__).parents[3] / "presets"
VALUES = {name: load_preset(name, PRESETS).values for name in preset_names(PRESETS)}
IMAGENET = [name for name, values in VALUES.items() if values["texture_vae"]["channels"] == 32]
PUBLISHED = {"B": 130.3e6, "XL": 674.6e6, "XXL": 1028.3e6}
"""Parameters with 48 channels and without REPA's projector (SFD, arXiv 2512.04926, and its public code)."""
TOKEN_CHANNELS = 768
IMAGES = 1_281_167 + 50_000
"""Of ImageNet-1k, for training and validation."""
IMAGENET_GUIDE = (PRESETS.parent / "docs" / "imagenet.md").read_text()


def params_of(name: str) -> Params:
    return load_preset(name, PRESETS).check()


def latent_of(params: Params, variant: VariantParams) -> LatentSpec:
    return LatentSpec(params.texture_vae.channels, params.semantic_channels(variant), params.latent_grid, TOKEN_CHANNELS)


@functools.cache
def network(model: str, size: str, semantic: str, repa: float) -> LightningDiT | DiT:
    """Presets share networks: what else they change is no part of the shape."""
    params = params_of("imagenet256-xl-80ep")
    origin = params.variants["repa" if repa else "lightningdit"]
    changes = {"model": model, "size": size, "semantic": semantic, "repa": origin.repa.model_copy(update={"weight": repa})}
    variant = origin.model_copy(update=changes)
    with torch.device("meta"):
        return build_denoiser(variant, latent_of(params, variant), num_classes=1000)


def projector_parameters(model: LightningDiT) -> int:
    return sum(weight.numel() for name, weight in model.named_parameters() if name.startswith("repa_projector."))


def test_the_paper_s_presets_are_for_imagenet_256() -> None:
    assert set(IMAGENET) == set(preset_names(PRESETS)) - {
        name for name in preset_names(PRESETS) if name.startswith(("avatars", "emoji", "cifar10", "rae"))
    }


@pytest.mark.parametrize("name", IMAGENET)
def test_latents_of_a_256_pixel_image_lie_on_one_16x16_grid(name: str) -> None:
    params = params_of(name)
    assert params.latent_grid == params.features.grid == 16
    with torch.device("meta"):
        encoder = timm.create_model(params.features.encoder, num_classes=0, img_size=params.features.input_size)
        vae = SemanticVAE(TOKEN_CHANNELS, params.semantic_vae.channels, params.semantic_vae.width, params.semantic_vae.depth, 6)
        tokens = encoder.forward_features(torch.empty(2, 3, params.features.input_size, params.features.input_size))
        patches = tokens[:, encoder.num_prefix_tokens :]
        assert patches.shape == (2, 16 * 16, TOKEN_CHANNELS)
        posterior = vae.encode(patches.transpose(1, 2).reshape(2, TOKEN_CHANNELS, 16, 16))
    assert posterior.mean.shape == (2, 16, 16, 16)


@pytest.mark.parametrize(("name", "variant"), [(name, variant) for name in IMAGENET for variant in VALUES[name]["active"]])
def test_denoiser_has_the_published_size_and_denoises_256_tokens(name: str, variant: str) -> None:
    params = params_of(name)
    chosen = params.variants[variant]
    latent = latent_of(params, chosen)
    model = network(chosen.model, chosen.size, chosen.semantic, chosen.repa.weight)
    assert latent.texture_channels == 32
    assert latent.channels == {"none": 32, "vae": 48, "pca": 40}[chosen.semantic]
    assert flops_per_image(model) > 2 * 256 * 0.6 * PUBLISHED[chosen.size]
    if isinstance(model, LightningDiT):
        size = parameter_count(model) - projector_parameters(model)
        assert size == pytest.approx(PUBLISHED[chosen.size], rel=2e-3 if chosen.semantic == "vae" else 1e-2)
        assert (chosen.repa.weight > 0) == (model.repa is not None)
        with torch.device("meta"):
            x, t = torch.empty(2, latent.channels, 16, 16), torch.empty(2)
            output = model.eval()(x, t, t, torch.empty(2, dtype=torch.long))
        assert output.prediction.shape == x.shape


@pytest.mark.parametrize("name", preset_names(PRESETS))
def test_a_guide_is_asked_for_only_where_the_preset_says_how_to_train_it(name: str) -> None:
    preset = load_preset(name, PRESETS)
    guided = preset.check().evaluate.sampler.guide is not None
    assert guided == ("imagenet256-guide-b" in preset.header and name != "imagenet256-guide-b")


def flops(forward: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return int(counter.get_total_flops())


def rows_of(document: str, *first: str) -> list[list[str]]:
    """Cells of the rows of a table whose first cell begins so."""
    lines = [line for line in document.splitlines() if line.startswith(tuple(f"| {cell}" for cell in first))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("posterior", ["sample", "moments"])
def test_the_documented_bytes_of_latents_are_those_of_their_fields(posterior: Literal["sample", "moments"]) -> None:
    params = params_of("imagenet256-xl-80ep")
    channels = {
        "z_tex": params.texture_vae.channels,
        "z_sem": params.semantic_vae.channels,
        "z_pca": params.semantic_vae.pca_channels,
    }
    image = [
        sum(field.row_bytes for field in latent_fields(posterior, channels, dtype, params.latent_grid).values())
        for dtype in ("float32", "float16")
    ]
    (row,) = rows_of(IMAGENET_GUIDE, f"`{posterior}`")
    assert row[1:] == [f"{size:,}" for size in image] + [f"{size * IMAGES / 1e9:.0f} GB" for size in image]


def test_the_documented_costs_of_repa_targets_are_those_of_the_networks() -> None:
    params = params_of("imagenet256-xl-80ep")
    features, compressor = params.features, params.semantic_vae
    with torch.device("meta"):
        encoder = timm.create_model(features.encoder, num_classes=0, img_size=features.input_size).eval()
        shape = (TOKEN_CHANNELS, compressor.channels, compressor.width, compressor.depth, compressor.heads)
        vae = SemanticVAE(*shape).eval()
        image = torch.empty(1, 3, features.input_size, features.input_size)
        extra = {
            ("encoder", "true"): 0,
            ("encoder", "false"): flops(lambda: encoder.forward_features(image)),
            ("semantic", "false"): flops(lambda: vae.decode(torch.empty(1, compressor.channels, 16, 16))),
        }
    steps = [3 * flops_per_image(network("lightningdit", size, "vae", 0.5).train()) for size in ("B", "XL")]
    stored = FieldSpec("float16", (2, TOKEN_CHANNELS, features.grid, features.grid)).row_bytes
    rows = {(row[0].split("`")[1], row[1].strip("`")): row[2:] for row in rows_of(IMAGENET_GUIDE, "`encoder`", "`semantic`")}
    for kind, cost in extra.items():
        size = stored if kind == ("encoder", "true") else 0
        gigaflops = f"{cost / 1e9:.1f}" if cost else "0"
        shares = [f"{100 * cost / step:.1f} %" if cost else "0 %" for step in steps]
        assert rows[kind] == [f"{size:,}", f"{size * IMAGES / 1e9:,.0f} GB", gigaflops, *shares]
    assert f"of {parameter_count(vae.decoder) / 1e6:.1f} million" in IMAGENET_GUIDE
