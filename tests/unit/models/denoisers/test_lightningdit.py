import pytest
import torch
from torch import Tensor

from sfd_core.experiment.sizes import MODEL_SIZES, ModelSize, SizeName
from sfd_core.models.denoisers.factory import parameter_count
from sfd_core.models.denoisers.lightningdit import LightningDiT, RepaHead

SMALL = ModelSize(depth=3, width=32, heads=2)
PUBLISHED = {"S": 32.9, "B": 130.3, "L": 457.7, "XL": 674.6, "XXL": 1028.3, "1p6B": 1630}
"""Millions of parameters at 48 channels, without the REPA projector."""

BLOCK_NAMES = {
    "norm1.weight", "norm2.weight", "attn.qkv.weight", "attn.qkv.bias", "attn.q_norm.weight", "attn.k_norm.weight",
    "attn.proj.weight", "attn.proj.bias", "mlp.w12.weight", "mlp.w12.bias", "mlp.w3.weight", "mlp.w3.bias",
    "adaLN_modulation.1.weight", "adaLN_modulation.1.bias",
}  # fmt: skip


def small(patch: int = 1, embedders: int = 2, repa: RepaHead | None = None) -> LightningDiT:
    torch.manual_seed(0)
    return LightningDiT(SMALL, in_channels=6, grid=4, patch=patch, num_classes=5, embedders=embedders, repa=repa)


def awaken(model: LightningDiT) -> LightningDiT:
    """Give the zero-initialised weights values, so that the condition and the blocks reach the output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adaLN_modulation" in name or "final_layer.linear" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs(n: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, t = torch.randn(n, 6, 4, 4, generator=generator), torch.rand(2, n, generator=generator)
    return x, t[0], t[1], torch.arange(n)


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_have_the_published_number_of_parameters(name: SizeName) -> None:
    with torch.device("meta"):
        model = LightningDiT(MODEL_SIZES[name], in_channels=48, grid=16, patch=1, num_classes=1000, embedders=2)
    millions = parameter_count(model) / 1e6
    assert round(millions, 1 if PUBLISHED[name] < 1500 else None) == PUBLISHED[name]


@pytest.mark.parametrize("embedders", [1, 2])
def test_parameter_names_are_those_of_the_public_checkpoints(embedders: int) -> None:
    times = ["t_embedder"] if embedders == 1 else ["t_embedder_sem", "t_embedder_tex"]
    expected = {"pos_embed", "y_embedder.embedding_table.weight", "feat_rope.freqs_cos", "feat_rope.freqs_sin"}
    expected |= {f"x_embedder.proj.{kind}" for kind in ("weight", "bias")}
    expected |= {f"{time}.mlp.{layer}.{kind}" for time in times for layer in (0, 2) for kind in ("weight", "bias")}
    expected |= {f"blocks.{block}.{name}" for block in range(SMALL.depth) for name in BLOCK_NAMES}
    expected |= {"final_layer.norm_final.weight"}
    expected |= {f"final_layer.{layer}.{kind}" for layer in ("linear", "adaLN_modulation.1") for kind in ("weight", "bias")}
    expected |= {f"repa_projector.{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")}
    assert small(embedders=embedders, repa=RepaHead(block=2, width=16, target_channels=7)).state_dict().keys() == expected


def test_shapes_are_those_of_the_public_checkpoints() -> None:
    with torch.device("meta"):
        model = LightningDiT(MODEL_SIZES["XL"], 48, 16, 1, 1000, embedders=2, repa=RepaHead(2, 2048, 768))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["x_embedder.proj.weight"] == (1152, 48, 1, 1)
    assert shapes["pos_embed"] == (1, 256, 1152)
    assert shapes["feat_rope.freqs_cos"] == (256, 72)
    assert shapes["t_embedder_sem.mlp.0.weight"] == (576, 256)
    assert shapes["y_embedder.embedding_table.weight"] == (1001, 1152)
    assert shapes["blocks.27.mlp.w12.weight"] == (6144, 1152)
    assert shapes["repa_projector.4.weight"] == (768, 2048)


@pytest.mark.parametrize("patch", [1, 2])
def test_output_is_zero_at_the_start_whatever_the_input(patch: int) -> None:
    output = small(patch)(*inputs())
    assert output.prediction.shape == (3, 6, 4, 4)
    assert not output.prediction.any()


@pytest.mark.parametrize("patch", [1, 2])
def test_every_input_and_every_parameter_matters(patch: int) -> None:
    model = awaken(small(patch, repa=RepaHead(block=3, width=16, target_channels=7)))
    x, t_tex, t_sem, labels = inputs()
    output = model(x, t_tex, t_sem, labels)
    for changed in [
        (x + 1, t_tex, t_sem, labels),
        (x, t_sem, t_sem, labels),
        (x, t_tex, t_tex, labels),
        (x, t_tex, t_sem, labels + 1),
    ]:
        assert (model(*changed).prediction - output.prediction).abs().flatten(1).amax(1).min() > 1e-5
    (output.prediction.square().sum() + output.repa_tokens.square().sum()).backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.requires_grad and not parameter.grad.any()]
    assert idle == []
    assert not model.pos_embed.requires_grad


def test_an_image_does_not_depend_on_its_batch() -> None:
    model = awaken(small()).eval()
    x, t_tex, t_sem, labels = inputs()
    whole = model(x, t_tex, t_sem, labels).prediction
    alone = torch.cat([model(x[i : i + 1], t_tex[i : i + 1], t_sem[i : i + 1], labels[i : i + 1]).prediction for i in range(3)])
    torch.testing.assert_close(whole, alone)


def test_semantic_time_fills_the_first_half_of_the_condition() -> None:
    model = small()
    t = torch.tensor([0.3])
    embedded = model._embed_times(t, 2 * t)
    torch.testing.assert_close(embedded[:, :16], model.t_embedder_sem(2 * t))
    torch.testing.assert_close(embedded[:, 16:], model.t_embedder_tex(t))


def test_null_class_is_the_last_row() -> None:
    model = awaken(small())
    x, t_tex, t_sem, _ = inputs(1)
    model(x, t_tex, t_sem, torch.tensor([model.num_classes])).prediction.sum().backward()
    touched = model.y_embedder.embedding_table.weight.grad.any(dim=1)
    assert touched.tolist() == [False] * 5 + [True]


def test_repa_tokens_come_in_training_only() -> None:
    model = small(patch=2, repa=RepaHead(block=1, width=16, target_channels=7))
    assert model(*inputs()).repa_tokens.shape == (3, 7, 4, 4)
    assert model.eval()(*inputs()).repa_tokens is None


def test_one_time_embedder_takes_the_time_of_texture() -> None:
    x, t_tex, t_sem, labels = inputs()
    single = awaken(small(embedders=1))
    torch.testing.assert_close(single(x, t_tex, t_sem, labels), single(x, t_tex, t_tex, labels))


def test_bfloat16_autocast_stays_close_and_returns_the_input_precision() -> None:
    model = awaken(small())
    exact = model(*inputs()).prediction
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(*inputs()).prediction
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.05 * exact.abs().max().item())
    rough.sum().backward()


def test_a_network_that_predicts_data_gives_its_velocity_at_each_parts_own_time() -> None:
    torch.manual_seed(0)
    plain, data = (
        awaken(LightningDiT(SMALL, 6, 4, 1, num_classes=5, embedders=2, data_texture=texture)) for texture in (None, 4)
    )
    data.load_state_dict(plain.state_dict())
    x, _, _, labels = inputs()
    t_tex, t_sem = torch.tensor([0.0, 0.5, 0.99]), torch.tensor([0.25, 1.0, 0.5])
    predicted = plain(x, t_tex, t_sem, labels).prediction
    velocity = data(x, t_tex, t_sem, labels).prediction
    for row, (rest_tex, rest_sem) in enumerate([(1.0, 0.75), (0.5, 0.05), (0.05, 0.5)]):
        torch.testing.assert_close(velocity[row, :4], (predicted - x)[row, :4] / rest_tex)
        torch.testing.assert_close(velocity[row, 4:], (predicted - x)[row, 4:] / rest_sem)


def test_an_inner_head_reads_its_block_and_leaves_the_rest_alone() -> None:
    torch.manual_seed(0)
    model = LightningDiT(SMALL, 6, 4, 1, num_classes=5, embedders=2, inner_block=2)
    assert bool((model.inner_layer.linear.weight == 0).all())
    plain = awaken(small())
    model.load_state_dict(plain.state_dict(), strict=False)
    model.inner_layer.load_state_dict(plain.final_layer.state_dict())
    output = model(*inputs())
    assert torch.equal(output.prediction, plain(*inputs()).prediction)
    assert plain(*inputs()).inner is None
    del plain.blocks[2]  # what a network that ended there would say
    torch.testing.assert_close(output.inner, plain(*inputs()).prediction)
