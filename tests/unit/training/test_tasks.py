"""What tasks make of stored images, latents and tokens: the same side of an image everywhere, and losses that add up."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from denoisers import SHAPE, variant
from small_stages import SEMANTIC_VAE, TRAIN
from torch import Tensor, nn

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.diffusion.loss import LossWeights, flow_loss
from sfd_core.diffusion.schedule import Active
from sfd_core.experiment.params import RepaParams, TrainedVAEParams, TrainParams, VariantParams
from sfd_core.latents.composite import ChannelStatistics, Composite, LatentStatistics
from sfd_core.latents.tokens import StoredTokens
from sfd_core.models.denoisers.lightningdit import DenoiserOutput
from sfd_core.models.vaes.semantic_vae import SemanticVAE
from sfd_core.models.vaes.texture_vae import TextureVAE, texture_vae_loss
from sfd_core.training.task import TrainingTask
from sfd_core.training.tasks.denoising import FlowTask, GaussianTask, LatentBatches
from sfd_core.training.tasks.semantics import SemanticVAETask
from sfd_core.training.tasks.texture import TextureVAETask

IMAGES, GRID, NULL = 12, 4, 3
WHOLE = slice(0, TRAIN.optimisation.batch_size)
TEXTURE_VAE = TrainedVAEParams.model_validate(
    {"kind": "trained", "channels": 4, "downsampling": 4, "width": 8, "depth": 1, "kl_weight": 0.5, "learning_rate": 1e-3}
    | {"optimisation": TRAIN.optimisation.model_dump()}
)
REPA = RepaParams(weight=0.5, mode="cosine", targets="encoder", block=2, width=16)


@pytest.fixture
def numbered(tmp_path: Path) -> ShardReader:
    """Latents and tokens whose every value is 2 i for image i and 2 i + 1 for its mirror image."""
    values = np.arange(2 * IMAGES).reshape(IMAGES, 2, 1, 1, 1) + np.zeros((1, 1, 2, GRID, GRID))
    kinds = {"z_tex": "float32", "z_sem": "float32", "tokens": "float16"}
    fields = {name: FieldSpec(kind, (2, 2, GRID, GRID)) for name, kind in kinds.items()} | {"label": FieldSpec("int64", ())}
    with ShardWriter(tmp_path / "numbered", fields, {}) as writer:
        writer.append(**{name: values.astype(kind) for name, kind in kinds.items()}, label=np.arange(IMAGES) % 3)
    return ShardReader(tmp_path / "numbered")


class TwoHeads(nn.Module):
    """Errs by other amounts in its last and its inner head, and has hidden states of its own."""

    def forward(self, x: Tensor, t_tex: Tensor, t_sem: Tensor, labels: Tensor) -> DenoiserOutput:
        return DenoiserOutput(0.5 * x, repa_tokens=x.sin()[:, :2], inner=x.cos())


def flow_task(shard: ShardReader, kind: VariantParams, train: TrainParams = TRAIN) -> FlowTask:
    plain = ChannelStatistics(torch.zeros(2), torch.ones(2))
    batches = LatentBatches(shard, Composite(LatentStatistics(plain, plain)), kind, train, NULL)
    return FlowTask(TwoHeads(), batches, kind, StoredTokens(shard))  # type: ignore[arg-type]


def noised(batch: Mapping[str, Tensor]) -> Tensor:
    times = torch.cat([batch[name][:, None].expand(-1, 2) for name in ("t_tex", "t_sem")], dim=1)[:, :, None, None]
    return times * batch["x1"] + (1 - times) * batch["noise"]


@pytest.mark.parametrize("flips", [True, False])
def test_latents_and_tokens_are_of_the_same_side_of_an_image(flips: bool, numbered: ShardReader) -> None:
    task = flow_task(numbered, variant(repa=REPA), TRAIN.model_copy(update={"flips": flips}))
    batches = [task.batch(step, WHOLE) for step in range(6)]
    shown = torch.cat([batch["x1"][:, 0, 0, 0] for batch in batches])
    for values in (torch.cat([batch["x1"] for batch in batches]), torch.cat([batch["tokens"] for batch in batches]).float()):
        assert torch.equal(values, shown[:, None, None, None].expand_as(values))
    assert bool((shown % 2 == 1).any()) == flips
    assert torch.equal(shown // 2, torch.cat([task.order.rows(step) for step in range(6)]).float())


def test_without_labels_every_image_is_of_no_class(numbered: ShardReader) -> None:
    unlabelled = TRAIN.model_copy(update={"conditional": False})
    assert flow_task(numbered, variant(), unlabelled).batch(0, WHOLE)["labels"].tolist() == [NULL] * WHOLE.stop


def test_every_term_has_the_weight_and_repa_the_mode_of_the_variant(numbered: ShardReader) -> None:
    repa = REPA.model_copy(update={"mode": "cosine+mse"})
    task = flow_task(numbered, variant(repa=repa, semantic_weight=3.0, cosine_weight=0.25))
    batch = task.batch(0, WHOLE)
    terms, x_t, tokens = task.loss(batch), noised(batch), batch["tokens"].float()
    squared = (0.5 * x_t - (batch["x1"] - batch["noise"])).square()
    torch.testing.assert_close(terms["mse"], (squared[:, :2].mean() + 3 * squared[:, 2:].mean()) / 2)
    hidden = x_t.sin()[:, :2]
    cosine = (1 - torch.nn.functional.cosine_similarity(hidden, tokens, dim=1)).mean()
    torch.testing.assert_close(terms["repa"], (cosine + (hidden - tokens).square().mean()) / 2)
    torch.testing.assert_close(terms["loss"], terms["mse"] + 0.25 * terms["cosine"] + 0.5 * terms["repa"])


def test_the_inner_head_adds_its_weighted_loss_of_the_parts_that_count(numbered: ShardReader) -> None:
    task = flow_task(numbered, variant(delta_t=1.0, mask_clamped=True, inner={"block": 2, "weight": 0.25}))
    batch = task.batch(0, WHOLE)
    active = Active(*batch["in_loss"].unbind(1))
    assert torch.equal(active.texture, batch["t_tex"] > 0)
    assert torch.equal(active.semantic, batch["t_sem"] < 1)
    assert not batch["in_loss"].all()
    terms = task.loss(batch)
    x_t = noised(batch)
    main, inner = (
        flow_loss(prediction, batch["x1"] - batch["noise"], 2, LossWeights(2.0, 1.0), active).total
        for prediction in (0.5 * x_t, x_t.cos())
    )
    torch.testing.assert_close(terms["inner"], inner)
    torch.testing.assert_close(terms["loss"], main + 0.25 * inner)


def test_the_texture_vae_sees_images_and_their_left_right_mirror_images() -> None:
    vae, seen = TextureVAE(SHAPE), []
    task = TextureVAETask(vae, range(IMAGES), TEXTURE_VAE)  # type: ignore[arg-type]
    vae.encoder.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    noise = torch.zeros(2, 4, 4, 4)
    terms = task.loss({"images": images, "mirrored": torch.tensor([True, False]), "noise": noise})
    expected = torch.stack([images[0].flip(2), images[1]]) / 127.5 - 1
    torch.testing.assert_close(seen[0].contiguous(), expected)
    posterior = vae.encode(expected)
    for name, value in texture_vae_loss(expected, posterior, vae.decode(posterior.mean), 0.5).items():
        torch.testing.assert_close(terms[name], value, msg=name)


def test_the_semantic_vae_learns_standardised_tokens(numbered: ShardReader) -> None:
    statistics = ChannelStatistics(torch.tensor([3.0, -1.0]), torch.tensor([2.0, 5.0]))
    vae, seen = SemanticVAE(in_channels=2, channels=2, width=16, depth=1, heads=2), []
    task = SemanticVAETask(vae, StoredTokens(numbered), statistics, SEMANTIC_VAE)
    vae.encoder.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    batch = task.batch(0, WHOLE)
    terms = task.loss(batch)
    expected = (batch["tokens"].float() - torch.tensor([3.0, -1.0])[:, None, None]) / torch.tensor([2.0, 5.0])[:, None, None]
    torch.testing.assert_close(seen[0], expected.flatten(2).transpose(1, 2))
    decoded = vae.decode(vae.encode(expected).sample(batch["noise"]))
    torch.testing.assert_close(terms["mse"], (decoded - expected).square().mean())


def task_of(kind: str, shard: ShardReader, images: Path) -> TrainingTask:
    if kind == "flow":
        return flow_task(shard, variant(repa=REPA, mask_clamped=True))
    if kind == "dit":
        params = variant(model="dit", semantic="none", delta_t=0.0, cosine_weight=0.0)
        composite = Composite(LatentStatistics(ChannelStatistics(torch.zeros(2), torch.ones(2)), None))
        return GaussianTask(nn.Identity(), LatentBatches(shard, composite, params, TRAIN, NULL))  # type: ignore[arg-type]
    if kind == "semantic vae":
        vae = SemanticVAE(in_channels=2, channels=2, width=16, depth=1, heads=2)
        return SemanticVAETask(vae, StoredTokens(shard), ChannelStatistics(torch.zeros(2), torch.ones(2)), SEMANTIC_VAE)
    with ShardWriter(images, {"image": FieldSpec("uint8", (3, 16, 16))}, {}) as writer:
        writer.append(image=np.random.default_rng(0).integers(256, size=(IMAGES, 3, 16, 16), dtype=np.uint8))
    return TextureVAETask(TextureVAE(SHAPE), ShardReader(images)["image"], TEXTURE_VAE)


@pytest.mark.parametrize("kind", ["flow", "dit", "semantic vae", "texture vae"])
def test_a_batch_is_the_same_in_any_parts_and_another_at_every_step(kind: str, numbered: ShardReader, tmp_path: Path) -> None:
    task = task_of(kind, numbered, tmp_path / "images")
    whole, other = task.batch(1, WHOLE), task.batch(2, WHOLE)
    parts = [task.batch(1, slice(first, first + 2)) for first in range(0, WHOLE.stop, 2)]
    for name, values in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), values), name
    for name in {"x1", "noise", "t_tex", "t_sem", "levels", "tokens", "images"} & whole.keys():
        assert not torch.equal(other[name], whole[name]), name
