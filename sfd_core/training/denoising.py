"""What the loop trains to generate: velocity models on latents, and DiT with its discrete noise levels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from sfd_core.composite import Composite
from sfd_core.config import TrainParams, VariantParams
from sfd_core.data.latents import SEMANTIC_LATENTS, StoredLatent
from sfd_core.data.shards import ShardReader
from sfd_core.diffusion.gaussian import GaussianProcess
from sfd_core.diffusion.loss import LossWeights, flow_loss, repa_loss
from sfd_core.diffusion.path import sample_path
from sfd_core.diffusion.schedule import AsyncSchedule
from sfd_core.errors import ConfigError
from sfd_core.models.dit import DiT
from sfd_core.models.lightningdit import LightningDiT
from sfd_core.seeding import derive_seed, generator
from sfd_core.tokens import TokenSource
from sfd_core.training.batches import BatchOrder


@dataclass(frozen=True)
class Batch:
    """Normalised latents (N, C, g, g), labels (N,), dropped ones replaced by the null class, rows and mirror choice (N,)."""

    latents: Tensor
    labels: Tensor
    rows: Tensor
    mirrored: Tensor


class LatentBatches:
    """Batches of stored latents, drawn where their posteriors are stored: a function of the seed and the step alone."""

    def __init__(
        self, latents: ShardReader, composite: Composite, variant: VariantParams, train: TrainParams, null: int
    ) -> None:
        self.texture, self.labels = StoredLatent(latents, "z_tex"), latents["label"]
        name = SEMANTIC_LATENTS[variant.semantic]
        self.semantic = None if name is None else StoredLatent(latents, name)
        self.composite, self.train, self.null = composite, train, null
        self.seed = derive_seed(train.optimisation.seed, variant.seed)
        self.order = BatchOrder(len(latents), train.optimisation.batch_size, self.seed)

    def batch(self, step: int, device: torch.device) -> Batch:
        """Return the batch of `step` on `device`."""
        rows = self.order.rows(step)
        taken = rows.numpy()
        mirrored = self.order.mirrored(step) if self.train.flips else torch.zeros(len(rows), dtype=torch.bool)
        z_tex, z_sem = self.texture.draw(taken, mirrored, self.generator("texture posterior", step)).to(device), None
        if self.semantic is not None:
            z_sem = self.semantic.draw(taken, mirrored, self.generator("semantic posterior", step)).to(device)
        labels = torch.from_numpy(self.labels.take(taken))
        dropped = torch.rand(len(rows), generator=self.generator("dropout", step)) < self.train.class_dropout
        labels = torch.where(dropped, self.null, labels).to(device)
        return Batch(self.composite.join(z_tex, z_sem), labels, rows, mirrored)

    def generator(self, purpose: str, step: int) -> torch.Generator:
        """Return the source of a step's random numbers for one purpose."""
        return generator(self.seed, purpose, step)


class FlowTask:
    """Flow matching with texture and semantics at their own times (SFD, arXiv 2512.04926, eq. 5 to 8).

    `tokens` are the encoder's, needed when REPA is on.
    """

    def __init__(
        self, model: LightningDiT, batches: LatentBatches, variant: VariantParams, tokens: TokenSource | None = None
    ) -> None:
        self.model, self.batches, self.variant, self.tokens = model, batches, variant, tokens
        self.schedule = AsyncSchedule(variant.delta_t)
        self.weights = LossWeights(variant.semantic_weight, variant.cosine_weight, variant.repa.weight)
        self.n_texture = batches.composite.n_texture
        if variant.repa.weight > 0 and tokens is None:
            raise ConfigError("repa.weight is positive, but no encoder tokens were given; open the features stage's output")

    def loss(self, step: int) -> Mapping[str, Tensor]:
        """Return the terms of `flow_loss`."""
        device = next(self.model.parameters()).device
        batch = self.batches.batch(step, device)
        x1 = batch.latents
        x0 = torch.randn(x1.shape, generator=self.batches.generator("noise", step)).to(device)
        times = self.schedule.sample(len(x1), self.batches.generator("time", step)).to(device)
        path = sample_path(x0, x1, times, self.n_texture)
        t_sem = times.t_sem if self.model.embedders == 2 else None
        output = self.model(path.x_t, times.t_tex, t_sem, batch.labels)
        active = self.schedule.active(times.u) if self.variant.mask_clamped else None
        repa = None
        if self.weights.repa > 0:
            repa = repa_loss(output.repa_tokens.flatten(2).transpose(1, 2), self._tokens(batch), self.variant.repa.mode)
        return flow_loss(output.prediction, path.velocity, self.n_texture, self.weights, active, repa).named()

    def _tokens(self, batch: Batch) -> Tensor:
        tokens = cast(TokenSource, self.tokens)
        return tokens.chosen(batch.rows.numpy(), batch.mirrored).to(batch.latents.device).float()


class GaussianTask:
    """DiT: epsilon and a learned range of variances at discrete noise levels (arXiv 2212.09748)."""

    def __init__(self, model: DiT, batches: LatentBatches) -> None:
        self.model, self.batches = model, batches
        self.process = GaussianProcess()

    def loss(self, step: int) -> Mapping[str, Tensor]:
        """Return the terms of `GaussianProcess.hybrid_loss`."""
        device = next(self.model.parameters()).device
        batch = self.batches.batch(step, device)
        noise = torch.randn(batch.latents.shape, generator=self.batches.generator("noise", step)).to(device)
        levels = self.process.sample_steps(len(noise), self.batches.generator("time", step)).to(device)
        x = self.process.add_noise(batch.latents, noise, levels)
        output = self.model(x, self.process.model_levels(levels), batch.labels)
        return self.process.hybrid_loss(output, batch.latents, noise, levels).named()
