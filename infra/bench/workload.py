"""A training as stage `train` runs it and the same one of `eager_baseline`, on random latents, and the clock of either."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from infra.bench import eager_baseline
from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.experiment.params import RepaParams, TrainParams, VariantParams
from sfd_core.experiment.presets import load_preset
from sfd_core.experiment.sizes import MODEL_SIZES, SizeName
from sfd_core.host.seeding import generator
from sfd_core.latents.composite import ChannelStatistics, Composite, LatentStatistics
from sfd_core.latents.tokens import ComputedTokens, StoredTokens, TokenSource
from sfd_core.models.denoisers.dit import DiT
from sfd_core.models.denoisers.factory import LatentSpec, build_denoiser
from sfd_core.models.denoisers.lightningdit import LightningDiT
from sfd_core.models.encoders.encoder import Encoder
from sfd_core.training.checkpoint import ResumeFolder
from sfd_core.training.ema import EMA
from sfd_core.training.loop import PLAIN_ENGINE, TrainingPlan, TrainingResult, run
from sfd_core.training.parallel import training_device
from sfd_core.training.tasks.denoising import FlowTask, GaussianTask, LatentBatches

PARAMS = load_preset("emoji", Path(__file__).parents[2] / "presets").check()
"""A small experiment with labels."""
CLASSES = 10
STEPS_AT_MOST = 1_000_000


@dataclass(frozen=True)
class Workload:
    """What is trained: the size of the network, the shape of its latents, and images a step and in the data set."""

    size: SizeName
    batch: int
    texture: int = 32
    semantic: int = 16
    grid: int = 8
    patch: int = 1
    images: int = 512
    precision: Literal["float32", "bfloat16"] = "float32"
    learning_rate: float = 1e-4
    model: Literal["lightningdit", "dit"] = "lightningdit"
    token_channels: int = 0
    """Channels of the encoder's tokens that REPA aligns with; 0 is no REPA."""
    encoder: tuple[str, int] | None = None
    """timm's model and its input size, which compute the tokens in every step; None stores random ones."""
    steps: int = STEPS_AT_MOST

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return (self.grid // self.patch) ** 2

    @property
    def channels(self) -> int:
        """Channels of the composite."""
        return self.texture + self.semantic

    @property
    def variant(self) -> VariantParams:
        """The committed experiment's SFD, texture alone or DiT in this size."""
        changes: dict[str, Any] = {"size": self.size, "patch": self.patch, "learning_rate": self.learning_rate}
        if self.token_channels:
            changes["repa"] = RepaParams(weight=0.5, mode="cosine+mse", targets="encoder", block=2, width=2048)
        name = "dit" if self.model == "dit" else "sfd" if self.semantic else "lightningdit"
        return PARAMS.variants[name].model_copy(update=changes)

    @property
    def params(self) -> TrainParams:
        """The committed experiment's training with this batch, as a rule without an end and without checkpoints."""
        changes = {
            "steps": self.steps,
            "checkpoint_every": STEPS_AT_MOST,
            "batch_size": self.batch,
            "precision": self.precision,
        }
        optimisation = PARAMS.train.optimisation.model_copy(update=changes)
        return PARAMS.train.model_copy(update={"optimisation": optimisation})

    @property
    def spec(self) -> LatentSpec:
        """The shape of its latents."""
        return LatentSpec(self.texture, self.semantic, self.grid, self.token_channels)

    def network(self) -> LightningDiT | DiT:
        """Return the product's network with random weights, none of them zero, on the default device."""
        return all_random(build_denoiser(self.variant, self.spec, CLASSES))

    def eager_network(self, like: nn.Module | None = None) -> eager_baseline.EagerLightningDiT:
        """Return the baseline's network on the training device with the weights of `like`, by default of `network`."""
        size = MODEL_SIZES[self.size]
        with training_device():
            model = eager_baseline.EagerLightningDiT(
                size.depth, size.width, size.heads, self.channels, self.grid, self.patch, CLASSES
            )
        model.load_state_dict((like or self.network()).state_dict())
        return model


def embedded() -> Workload:
    """The committed experiment's SFD."""
    texture, patch = PARAMS.texture_vae.channels, PARAMS.variants["sfd"].patch
    return Workload(
        "tiny", PARAMS.train.optimisation.batch_size, texture, PARAMS.semantic_vae.channels, PARAMS.latent_grid, patch
    )


class Clock(EMA):
    """The average of the weights, which the loop updates at the end of every step: the place to look at the watch.

    `at_step_end` gets the number of steps done; it ends the run, before any checkpoint, by raising `Measured`.
    """

    def __init__(self, model: nn.Module, train: TrainParams, at_step_end: Callable[[int], None]) -> None:
        super().__init__(model, train.ema_decay, train.ema_warmup)
        self._at_step_end = at_step_end

    def update(self, model: nn.Module) -> None:
        """Average, then tell."""
        super().update(model)
        self._at_step_end(self.updates)


class Measured(Exception):  # noqa: N818 (no error)
    """All that was to be measured is measured."""


def task_of(workload: Workload, folder: Path, model: LightningDiT | DiT) -> FlowTask | GaussianTask:
    """Return what trains `model` on random latents, which are written to `folder`."""
    latents = _shard(workload, folder / "latents")
    batches = LatentBatches(latents, composite(workload), workload.variant, workload.params, CLASSES)
    if isinstance(model, DiT):
        return GaussianTask(model, batches)
    return FlowTask(model, batches, workload.variant, _tokens(workload, folder / "tokens") if workload.token_channels else None)


def train_with_engine(
    workload: Workload, folder: Path, at_step_end: Callable[[int], None], model: LightningDiT | DiT | None = None
) -> TrainingResult | None:
    """Run the product's training to its end, or until `at_step_end` raises `Measured`, which returns None.

    `at_step_end` is called with the number of steps done: after every step, and once before the first.
    """
    model = (model or workload.network()).to(training_device())
    task = task_of(workload, folder, model)
    # a compilation that takes longer than usual must not put a checkpoint between the steps that are measured
    engine = PLAIN_ENGINE.model_copy(update={"checkpoint_seconds": float(STEPS_AT_MOST)})
    plan = TrainingPlan("bench", workload.params.optimisation, workload.variant.learning_rate, engine=engine)
    clock = Clock(model, workload.params, at_step_end)
    at_step_end(0)
    with contextlib.suppress(Measured):
        return run(task, plan, ResumeFolder(folder / "resume"), ema=clock)
    return None


def eager_steps(workload: Workload, folder: Path, readers: int = 0, like: nn.Module | None = None) -> Iterator[float]:
    """Yield the losses of the baseline's training, a step each, from the weights of `like`.

    `readers` processes read the latents; 0 is none but this one.
    """
    variant, train = workload.variant, workload.params
    beta1, beta2 = train.optimisation.betas
    recipe = eager_baseline.Recipe(
        workload.texture, CLASSES, variant.delta_t, variant.semantic_weight, variant.cosine_weight, train.class_dropout,
        variant.mask_clamped, variant.learning_rate, (beta1, beta2), train.optimisation.clip_norm, train.ema_decay,
        workload.precision == "bfloat16",
    )  # fmt: skip
    mean, std = torch.zeros(workload.channels), torch.ones(workload.channels)
    rows = min(128, workload.images)
    data = eager_baseline.LatentFiles(_files(workload, folder / "files", rows), rows, mean, std, train.flips)
    return eager_baseline.train(workload.eager_network(like), data, recipe, workload.batch, readers)


def composite(workload: Workload) -> Composite:
    """Return what joins the latents of a workload, which are normal already."""

    def standard(channels: int) -> ChannelStatistics:
        return ChannelStatistics(torch.zeros(channels), torch.ones(channels))

    return Composite(LatentStatistics(standard(workload.texture), standard(workload.semantic) if workload.semantic else None))


def all_random(model: LightningDiT | DiT) -> LightningDiT | DiT:
    """Replace the zeros that a network starts with: products with zero may be cheaper, and gradients vanish behind them."""
    source = torch.Generator(next(model.parameters()).device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.02, generator=source)
    return model


def _latents(workload: Workload) -> tuple[Tensor, Tensor]:
    """Return latents of images and their mirror images (N, 2, C, g, g), and labels (N,)."""
    source = generator(0, "latents")
    shape = (workload.images, 2, workload.channels, workload.grid, workload.grid)
    return torch.randn(shape, generator=source), torch.randint(CLASSES, (workload.images,), generator=source)


def _shard(workload: Workload, path: Path) -> ShardReader:
    latents, labels = _latents(workload)
    parts = {"z_tex": latents[:, :, : workload.texture], "z_sem": latents[:, :, workload.texture :]}
    fields = {name: FieldSpec("float32", tuple(part.shape[1:])) for name, part in parts.items()}
    with ShardWriter(path, fields | {"label": FieldSpec("int64", ())}, {}) as writer:
        writer.append(**{name: part.numpy() for name, part in parts.items()}, label=labels.numpy())
    return ShardReader(path)


def random_encoder(name: str, input_size: int, grid: int) -> Encoder:
    """Return timm's model `name` with random weights, in bfloat16 on the training device."""
    network = timm.create_model(name, pretrained=False, num_classes=0, img_size=input_size)
    return Encoder(name, network, input_size, grid, "bfloat16").to(training_device())


def _tokens(workload: Workload, path: Path) -> TokenSource:
    if workload.encoder is not None:
        images = torch.randint(0, 256, (workload.images, 3, 256, 256), dtype=torch.uint8)
        with ShardWriter(path, {"image": FieldSpec("uint8", (3, 256, 256))}, {}) as writer:
            writer.append(image=images.numpy())
        return ComputedTokens(random_encoder(*workload.encoder, workload.grid), ShardReader(path), workload.batch, "random")
    shape = (2, workload.token_channels, workload.grid, workload.grid)
    source = generator(0, "tokens")
    with ShardWriter(path, {"tokens": FieldSpec("float16", shape)}, {}) as writer:
        for _ in range(workload.images):
            writer.append(tokens=torch.randn(1, *shape, generator=source).half().numpy())
    return StoredTokens(ShardReader(path))


def _files(workload: Workload, folder: Path, rows: int) -> list[Path]:
    folder.mkdir(parents=True)
    latents, labels = _latents(workload)
    files = []
    for start in range(0, workload.images, rows):
        part = slice(start, start + rows)
        both = {"latents": latents[part, 0].contiguous(), "latents_flip": latents[part, 1].contiguous()}
        files.append(folder / f"{start:06d}.safetensors")
        save_file(both | {"labels": labels[part].clone()}, files[-1])
    return files
