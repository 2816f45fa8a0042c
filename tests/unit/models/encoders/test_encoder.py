import os
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from sfd_core.data.sources.twemoji import Placement, render
from sfd_core.experiment.params import FeaturesParams
from sfd_core.host.errors import ConfigError, DataError, ResourceError
from sfd_core.models.encoders import encoder as encoders
from sfd_core.models.encoders.encoder import Encoder, efficientnet_lite, fold_batch_norms, load_encoder, weights_digest


def params(**changes: object) -> FeaturesParams:
    values = {
        "encoder": "tf_efficientnet_lite0", "weights": "package", "input_size": 128, "grid": 8,
        "precision": "float32", "store": True, "batch_size": 4,
    }  # fmt: skip
    return FeaturesParams.model_validate(values | changes)


def some_images(side: int = 64, count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def random_model(name: str, size: int) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=size)
    # Fresh vision transformers have zero biases and unit norms; other values make a mix-up visible.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def test_efficientnet_lite0_gives_the_last_map_of_stride_16() -> None:
    encoder = load_encoder(params())
    tokens = encoder.tokens(some_images())
    assert (encoder.channels, tokens.shape, tokens.dtype) == (112, (3, 112, 8, 8), torch.float32)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.training


def test_its_tokens_are_what_timms_own_feature_extractor_gives() -> None:
    images = some_images(128)
    plain = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(3,)).eval()
    plain.load_state_dict(efficientnet_lite("tf_efficientnet_lite0").state_dict(), strict=False)
    with torch.no_grad():
        expected = plain(images / 127.5 - 1)[0]
    torch.testing.assert_close(load_encoder(params()).tokens(images), expected, rtol=1e-4, atol=1e-4)


def test_smaller_images_are_resized_with_a_bicubic_filter_and_stay_in_range() -> None:
    images = (some_images(64) > 127).to(torch.uint8) * 255
    encoder = load_encoder(params())
    resized = F.interpolate(images.float(), (128, 128), mode="bicubic", antialias=True)
    assert resized.max() > 255.5
    rounded = resized.clamp(0, 255).round().to(torch.uint8)
    expected = encoder.tokens(rounded)
    assert (encoder.tokens(images) - expected).norm() < 0.01 * expected.norm()


def test_a_token_does_not_depend_on_the_rest_of_the_batch() -> None:
    encoder, images = load_encoder(params()), some_images()
    torch.testing.assert_close(encoder.tokens(images)[1:2], encoder.tokens(images[1:2]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "side"), [("tf_efficientnet_lite0", 224), ("tf_efficientnet_lite2", 260)])
def test_packaged_weights_recognise_drawings(name: str, side: int) -> None:
    """The right class of ImageNet is among the first 20 of 1,000: tensors matched by order are the right ones."""
    drawings = {"1f993": 340, "1f3b8": 402, "1f3bb": 889, "2602": 879, "1f353": 949, "1f34a": 950}
    pixels = [torch.from_numpy(render(emoji, side, Placement(0.8, 0.1, 0.1))).permute(2, 0, 1) for emoji in drawings]
    with torch.no_grad():
        logits = efficientnet_lite(name)(torch.stack(pixels) / 127.5 - 1)
    for row, label in zip(logits, drawings.values(), strict=True):
        assert int((row > row[label]).sum()) < 20


VISION_TRANSFORMERS = {
    "class token": ("test_vit", 160, 10),
    "registers and pooling by attention": ("test_vit3", 160, 10),
    "normalised after pooling": ("test_vit2", 160, 10),
    "DINOv2's layer scale and registers": ("vit_small_patch14_reg4_dinov2.lvd142m", 56, 4),
}


@pytest.mark.parametrize(("name", "size", "grid"), VISION_TRANSFORMERS.values(), ids=VISION_TRANSFORMERS.keys())
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_vision_transformers_give_normalised_patch_tokens_in_raster_order(
    tmp_path: Path, name: str, size: int, grid: int, kind: str
) -> None:
    model, file = random_model(name, size), tmp_path / f"weights.{kind}"
    if kind == "pth":
        torch.save(model.state_dict(), file)
    else:
        save_file(model.state_dict(), file)
    encoder = load_encoder(params(encoder=name, weights=str(file), input_size=size, grid=grid))
    images = some_images(size, count=1)
    cfg = timm.get_pretrained_cfg(name)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (cfg.mean, cfg.std))
    with torch.no_grad():
        sequence = model.forward_features((images / 255 - mean) / std)
    patches = sequence[:, -grid * grid :]
    assert patches.shape[1] + model.num_prefix_tokens == sequence.shape[1]
    expected = patches.transpose(1, 2).reshape(1, -1, grid, grid)
    assert encoder.channels == expected.shape[1]
    torch.testing.assert_close(encoder.tokens(images), expected, rtol=1e-3, atol=1e-4)


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PAPERS = {
    "vit_small_patch14_reg4_dinov2.lvd142m": (224, 384, 5, IMAGENET),
    "vit_base_patch14_reg4_dinov2.lvd142m": (224, 768, 5, IMAGENET),
    "vit_large_patch14_reg4_dinov2.lvd142m": (224, 1024, 5, IMAGENET),
    "vit_base_patch16_224.mae": (256, 768, 1, IMAGENET),
    "vit_base_patch16_clip_quickgelu_224.openai": (256, 768, 1, CLIP),
    "vit_base_patch16_siglip_224.webli": (256, 768, 0, HALF),
    "vit_base_patch16_siglip_256.webli": (256, 768, 0, HALF),
}
"""The paper's encoders: input size for a 16 x 16 grid, channels, tokens before the patches, mean and deviation of pixels."""


@pytest.mark.parametrize("name", [name if "small" in name else pytest.param(name, marks=pytest.mark.slow) for name in PAPERS])
def test_the_papers_encoders_give_their_patch_tokens_on_a_16x16_grid(name: str) -> None:
    """Against a direct call of the true architecture, with random weights."""
    size, channels, prefix, (mean, std) = PAPERS[name]
    model = random_model(name, size)
    encoder = Encoder(name, model, size, 16, "float32")
    images = some_images(size, count=1)
    pixels = (images / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.no_grad():
        sequence = model.forward_features(pixels)
    assert sequence.shape == (1, prefix + 256, channels)
    expected = sequence[:, prefix:].transpose(1, 2).reshape(1, channels, 16, 16)
    assert encoder.channels == channels
    torch.testing.assert_close(encoder.tokens(images), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_encoders_end_in_a_norm_over_their_channels(name: str) -> None:
    size, channels, prefix, _ = PAPERS[name]
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, img_size=size)
    assert isinstance(model.norm, torch.nn.LayerNorm)
    assert (model.norm.normalized_shape, model.num_prefix_tokens) == ((channels,), prefix)
    assert model.patch_embed.grid_size == (16, 16)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Architectures as they are, but with two blocks of 64 channels."""
    create = timm.create_model

    def create_small(name: str, **options: object) -> torch.nn.Module:
        return create(name, embed_dim=64, depth=2, num_heads=4, **options)

    monkeypatch.setattr(timm, "create_model", create_small)


def facebook_dinov2(state: dict[str, torch.Tensor]) -> dict[str, object]:
    """DINOv2's own file: the class token's position is a part of `pos_embed`, registers have no position."""
    first = torch.randn(1, 1, 64)
    named = {name: value for name, value in state.items() if name not in ("reg_token", "cls_token", "pos_embed")}
    return named | {
        "cls_token": state["cls_token"] - first,
        "register_tokens": state["reg_token"],
        "pos_embed": torch.cat([first, state["pos_embed"]], dim=1),
        "mask_token": torch.zeros(1, 64),
    }


def facebook_mae(state: dict[str, torch.Tensor]) -> dict[str, object]:
    return {"model": state}


def facebook_mae_with_decoder(state: dict[str, torch.Tensor]) -> dict[str, object]:
    decoder = {
        "decoder_embed.weight": torch.zeros(32, 64),
        "decoder_pos_embed": torch.zeros(1, 5, 32),
        "mask_token": torch.zeros(1),
    }
    return {"model": state | decoder, "epoch": 799}


def open_clip(state: dict[str, torch.Tensor]) -> dict[str, object]:
    """An OpenAI CLIP in open_clip's names: an image tower of its own, and a text tower."""
    named = {
        "visual.class_embedding": state["cls_token"][0, 0],
        "visual.positional_embedding": state["pos_embed"][0],
        "visual.conv1.weight": state["patch_embed.proj.weight"],
        "visual.proj": torch.randn(64, 32),
        "logit_scale": torch.zeros(()),
        "transformer.resblocks.0.ln_1.weight": torch.zeros(32),
    }
    parts = {
        "norm1": "ln_1", "norm2": "ln_2", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    for kind in ("weight", "bias"):
        named[f"visual.ln_pre.{kind}"], named[f"visual.ln_post.{kind}"] = state[f"norm_pre.{kind}"], state[f"norm.{kind}"]
        for block in range(2):
            place = f"visual.transformer.resblocks.{block}"
            named[f"{place}.attn.in_proj_{kind}"] = state[f"blocks.{block}.attn.qkv.{kind}"]
            for ours, theirs in parts.items():
                named[f"{place}.{theirs}.{kind}"] = state[f"blocks.{block}.{ours}.{kind}"]
    return dict(named)


def open_clip_siglip(state: dict[str, torch.Tensor]) -> dict[str, object]:
    """A SigLIP in open_clip's names: timm's image tower as the trunk."""
    return {f"visual.trunk.{name}": value for name, value in state.items()} | {
        "text.x": torch.zeros(1),
        "logit_bias": torch.zeros(1),
    }


PUBLISHED = {
    "DINOv2": ("vit_base_patch14_reg4_dinov2.lvd142m", 56, facebook_dinov2),
    "MAE": ("vit_base_patch16_224.mae", 64, facebook_mae),
    "MAE with decoder": ("vit_base_patch16_224.mae", 64, facebook_mae_with_decoder),
    "CLIP": ("vit_base_patch16_clip_quickgelu_224.openai", 64, open_clip),
    "SigLIP": ("vit_base_patch16_siglip_256.webli", 64, open_clip_siglip),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("name", "size", "publish"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_files_of_weights_are_read_as_each_family_publishes_them(
    tmp_path: Path, name: str, size: int, publish: Callable[[dict[str, torch.Tensor]], dict[str, object]]
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, img_size=size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    torch.save(publish(model.state_dict()), tmp_path / "weights.pth")
    encoder = load_encoder(params(encoder=name, weights=str(tmp_path / "weights.pth"), input_size=size, grid=4))
    expected = Encoder(name, model, size, 4, "float32")
    torch.testing.assert_close(encoder.tokens(some_images(size)), expected.tokens(some_images(size)), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("name", "size", "publish"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_position_embeddings_of_a_published_file_are_resampled_to_the_grid(
    tmp_path: Path, name: str, size: int, publish: Callable[[dict[str, torch.Tensor]], dict[str, object]]
) -> None:
    """Bicubic with antialiasing over the patches' positions; those of other tokens stay."""
    torch.manual_seed(0)
    native = timm.create_model(name, num_classes=0, img_size=7 * size // 4)
    torch.nn.init.normal_(native.pos_embed)
    torch.save(publish(native.state_dict()), tmp_path / "weights.pth")
    encoder = load_encoder(params(encoder=name, weights=str(tmp_path / "weights.pth"), input_size=size, grid=4))
    patches = native.pos_embed[:, -49:].detach().transpose(1, 2).reshape(1, 64, 7, 7)
    resampled = F.interpolate(patches, (4, 4), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.model.pos_embed[:, -16:], resampled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder.model.pos_embed[:, :-16], native.pos_embed[:, :-49])


def test_bfloat16_is_near_float32_and_another_identity() -> None:
    single, half = load_encoder(params()), load_encoder(params(precision="bfloat16"))
    images = some_images()
    expected, found = single.tokens(images), half.tokens(images)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()
    assert {key for key in single.identity if single.identity[key] != half.identity[key]} == {"precision"}


def test_clip_weights_trained_with_quick_gelu_are_refused_in_a_model_with_gelu() -> None:
    with pytest.raises(ConfigError, match=r"set it to vit_base_patch16_clip_quickgelu_224\.openai"):
        load_encoder(params(encoder="vit_base_patch16_clip_224.openai", weights="hub", input_size=256, grid=16))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_folding_batch_norms_leaves_the_function_and_no_batch_norm(name: str) -> None:
    network = efficientnet_lite(name)
    pixels = some_images(96, count=2) / 127.5 - 1
    with torch.no_grad():
        expected = network(pixels)
        fold_batch_norms(network)
        torch.testing.assert_close(network(pixels), expected, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())


def test_identity_names_model_weights_size_and_grid_and_not_the_file_format(tmp_path: Path) -> None:
    state = efficientnet_lite("tf_efficientnet_lite0").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    save_file(state, tmp_path / "weights.safetensors")
    packaged = load_encoder(params()).identity
    assert packaged["name"] == "tf_efficientnet_lite0"
    assert (packaged["input_size"], packaged["grid"]) == (128, 8)
    for file in ("weights.pth", "weights.safetensors"):
        assert load_encoder(params(weights=str(tmp_path / file))).identity == packaged
    state["conv_stem.weight"][0, 0, 0, 0] += 1e-6
    torch.save(state, tmp_path / "other.pth")
    assert load_encoder(params(weights=str(tmp_path / "other.pth"))).identity["weights"] != packaged["weights"]


def test_the_digest_covers_names_types_and_values() -> None:
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert weights_digest(first) != weights_digest(second)
    second.load_state_dict(first.state_dict())
    assert weights_digest(first) == weights_digest(second)
    assert weights_digest(first) != weights_digest(second.half())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"encoder": "resnet_of_dreams"}, ConfigError, "'resnet_of_dreams' is no timm model"),
        ({"grid": 7}, ConfigError, r"no 7x7 grid at features\.input_size 128; .* must be one of 14, 28, 56, 112, 224"),
        ({"encoder": "test_resnet"}, ConfigError, r"no package has weights of 'test_resnet' .* set features\.weights"),
        ({"weights": "nowhere.safetensors"}, ResourceError, r"weights file nowhere\.safetensors does not exist; download "),
    ],
)
def test_bad_choices_say_what_to_do(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_encoder(params(**changes))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encoders.PACKAGED, "tf_efficientnet_lite0", ("no_such_package", "File"))
    with pytest.raises(ResourceError, match=r"package no-such-package, .* is not installed; install requirements\.lock"):
        efficientnet_lite("tf_efficientnet_lite0")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    torch.save(efficientnet_lite("tf_efficientnet_lite2").state_dict(), tmp_path / "lite2.pth")
    with pytest.raises(DataError, match=r"lite2\.pth holds weights of another model"):
        load_encoder(params(weights=str(tmp_path / "lite2.pth")))
    small, base = (f"vit_{size}_patch14_reg4_dinov2.lvd142m" for size in ("small", "base"))
    with torch.device("meta"):
        shapes = timm.create_model(small, num_classes=0).state_dict()
    torch.save({key: torch.zeros(value.shape) for key, value in shapes.items()}, tmp_path / "small.pth")
    with pytest.raises(DataError, match=r"misshapen: cls_token \(1, 1, 384\) instead of \(1, 1, 768\)") as raised:
        load_encoder(params(encoder=base, weights=str(tmp_path / "small.pth"), input_size=224, grid=16))
    assert len(str(raised.value)) < 800
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(DataError, match=r"empty\.pth is no set of weights"):
        load_encoder(params(weights=str(tmp_path / "empty.pth")))
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "nested.pth")
    with pytest.raises(DataError, match=r"nested\.pth holds weights of another model"):
        load_encoder(params(weights=str(tmp_path / "nested.pth")))
    torch.save({"optimizer": {"step": 1}}, tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"other\.pth is no set of weights: it holds optimizer"):
        load_encoder(params(weights=str(tmp_path / "other.pth")))


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("created-by-a-pickle",)


def test_code_in_a_file_of_weights_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Payload()}, tmp_path / "hostile.pth")
    with pytest.raises(DataError, match=r"hostile\.pth holds more than tensors .* and is not unpickled"):
        load_encoder(params(weights=str(tmp_path / "hostile.pth")))
    assert not (tmp_path / "created-by-a-pickle").exists()


def test_the_hub_out_of_reach_says_to_give_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = r"weights of test_vit\.r160_in1k could not be downloaded .* download model\.safetensors of .* timm/test_vit"
    with pytest.raises(ResourceError, match=message):
        load_encoder(params(encoder="test_vit.r160_in1k", weights="hub", input_size=160, grid=10))
    with pytest.raises(
        ResourceError, match=r"repository timm/vit_small\S+ or https://\S+/dinov2_vits14_reg4_pretrain\.pth elsewhere"
    ):
        load_encoder(params(encoder="vit_small_patch14_reg4_dinov2.lvd142m", weights="hub", input_size=56, grid=4))
