import pytest
import torch

from sfd_core.experiment.params import Params, VariantParams, load_params
from sfd_core.experiment.sizes import MODEL_SIZES
from sfd_core.models.denoisers.dit import DiT
from sfd_core.models.denoisers.factory import LatentSpec, build_denoiser, flops_per_image, parameter_count
from sfd_core.models.denoisers.lightningdit import LightningDiT

TEXTURE_ONLY = LatentSpec(texture_channels=16, semantic_channels=0, grid=8, token_channels=112)
COMPOSITE = LatentSpec(texture_channels=16, semantic_channels=8, grid=8, token_channels=112)


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params()


def spec(variant: VariantParams) -> LatentSpec:
    return TEXTURE_ONLY if variant.semantic == "none" else COMPOSITE


@pytest.mark.parametrize("name", ["dit", "lightningdit", "sync", "sfd", "redi", "repa"])
def test_every_committed_variant_is_built_and_runs(params: Params, name: str) -> None:
    variant = params.variants[name]
    model = build_denoiser(variant, spec(variant), num_classes=10)
    x, t, labels = torch.randn(2, spec(variant).channels, 8, 8), torch.rand(2), torch.tensor([0, 10])
    if isinstance(model, DiT):
        assert variant.model == "dit"
        assert model(x, 999 * t, labels).shape == (2, 32, 8, 8)
        return
    output = model(x, t, t, labels)
    assert output.prediction.shape == x.shape
    assert (output.repa_tokens is not None) == (variant.repa.weight > 0)


def test_composite_latents_always_have_two_time_embedders(params: Params) -> None:
    # also without an offset, so that one checkpoint can be sampled with any
    synchronous = build_denoiser(params.variants["sync"], COMPOSITE, num_classes=10)
    texture = build_denoiser(params.variants["lightningdit"], TEXTURE_ONLY, num_classes=10)
    assert isinstance(synchronous, LightningDiT)
    assert isinstance(texture, LightningDiT)
    assert (synchronous.embedders, texture.embedders) == (2, 1)


def test_initial_weights_depend_on_the_seed_alone(params: Params) -> None:
    variant = params.variants["sfd"]
    torch.manual_seed(1)
    first = build_denoiser(variant, COMPOSITE, num_classes=10).state_dict()
    after = torch.rand(1)
    torch.manual_seed(2)
    second = build_denoiser(variant, COMPOSITE, num_classes=10).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after), "building a network must not move the global generator"
    other = build_denoiser(variant.model_copy(update={"seed": 1}), COMPOSITE, num_classes=10).state_dict()
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_flops_are_those_of_the_matrix_products(params: Params) -> None:
    width, tokens, depth, hidden, patch_values = 128, 16, 4, 341, 4 * 16
    model = build_denoiser(params.variants["lightningdit"], TEXTURE_ONLY, num_classes=10)
    per_token = depth * (4 * width**2 + 3 * width * hidden + 2 * tokens * width) + 2 * patch_values * width
    per_image = (6 * depth + 2) * width**2 + 256 * width + width**2
    assert flops_per_image(model) == 2 * (tokens * per_token + per_image)


def test_flops_of_dit_xl2_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = DiT(MODEL_SIZES["XL"], in_channels=4, grid=32, patch=2, num_classes=1000)
    # 118.64 G multiply-adds in the paper (arXiv 2212.09748, table 1)
    assert flops_per_image(model) / 2e9 == pytest.approx(118.64, rel=1e-3)


def test_counting_leaves_the_model_as_it_was_and_sees_the_projector(params: Params) -> None:
    model = build_denoiser(params.variants["repa"], TEXTURE_ONLY, num_classes=10)
    training = flops_per_image(model)
    assert training > flops_per_image(model.eval())
    assert next(model.parameters()).device.type == "cpu"
    assert parameter_count(model) == sum(parameter.numel() for parameter in model.parameters())
