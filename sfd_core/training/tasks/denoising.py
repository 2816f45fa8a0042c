"""What the loop trains to generate: velocity models on latents, and DiT with its discrete noise levels."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from sfd_core.data.store.shards import ShardReader
from sfd_core.diffusion.gaussian import GaussianProcess
from sfd_core.diffusion.loss import LossWeights, flow_loss, repa_loss
from sfd_core.diffusion.path import sample_path
from sfd_core.diffusion.schedule import Active, LocalTimes
from sfd_core.diffusion.times import draw_times
from sfd_core.experiment.params import TrainParams, VariantParams
from sfd_core.host.seeding import batch_noise, derive_seed, generator
from sfd_core.latents.composite import Composite
from sfd_core.latents.stored import SEMANTIC_LATENTS, StoredLatent
from sfd_core.latents.tokens import RepaTargets
from sfd_core.models.denoisers.dit import DiT
from sfd_core.models.denoisers.lightningdit import LightningDiT
from sfd_core.training.batches import BatchOrder


class LatentBatches:
    """Batches of stored latents, drawn where their posteriors are stored: a function of seed, step and position alone."""

    def __init__(
        self, latents: ShardReader, composite: Composite, variant: VariantParams, train: TrainParams, null: int
    ) -> None:
        self.texture, self.labels = StoredLatent(latents, "z_tex"), latents["label"]
        name = SEMANTIC_LATENTS[variant.semantic]
        self.semantic = None if name is None else StoredLatent(latents, name)
        self.composite, self.train, self.null = composite, train, null
        self.seed = derive_seed(train.optimisation.seed, variant.seed)
        self.order = BatchOrder(len(latents), train.optimisation.batch_size, self.seed)

    def mirrored(self, step: int) -> Tensor:
        """Return of which images of a step the mirror image is taken (batch_size,), bool."""
        return self.order.mirrored(step) if self.train.flips else torch.zeros(self.order.batch_size, dtype=torch.bool)

    def batch(self, step: int, part: slice) -> dict[str, Tensor]:
        """Return, for n positions of a step: the normalised composite `x1` (n, C, g, g), as much `noise`, and `labels` (n,),
        dropped ones replaced by the null class.
        """
        rows, mirrored = self.order.rows(step)[part].numpy(), self.mirrored(step)[part]
        z_sem, z_tex = None, self.texture.draw(rows, mirrored, partial(self.noise, "texture posterior", step, part))
        if self.semantic is not None:
            z_sem = self.semantic.draw(rows, mirrored, partial(self.noise, "semantic posterior", step, part))
        x1 = self.composite.join(z_tex, z_sem)
        labels = torch.from_numpy(self.labels.take(rows))
        dropout = self.train.class_dropout if self.train.conditional else 1.0
        dropped = torch.rand(self.order.batch_size, generator=self.generator("dropout", step)) < dropout
        noise = self.noise("noise", step, part, tuple(x1.shape[1:]))
        return {"x1": x1, "noise": noise, "labels": torch.where(dropped[part], self.null, labels)}

    def noise(self, purpose: str, step: int, part: slice, shape: tuple[int, ...]) -> Tensor:
        """Return a step's standard normal noise (n, *shape) for one purpose."""
        return batch_noise(self.order.batch_size, part, shape, self.seed, purpose, step)

    def generator(self, purpose: str, step: int) -> torch.Generator:
        """Return the source of a step's other random numbers for one purpose."""
        return generator(self.seed, purpose, step)


class FlowTask:
    """Flow matching with texture and semantics at their own times (SFD, arXiv 2512.04926, eq. 5 to 8).

    `tokens` are the encoder's, needed when REPA is on.
    """

    def __init__(
        self, model: LightningDiT, batches: LatentBatches, variant: VariantParams, tokens: RepaTargets | None = None
    ) -> None:
        self.model, self.batches, self.variant, self.tokens = model, batches, variant, tokens
        self.order, self.n_texture = batches.order, batches.composite.n_texture
        self.weights = LossWeights(variant.semantic_weight, variant.cosine_weight, variant.repa.weight)

    def batch(self, step: int, part: slice) -> Mapping[str, Tensor]:
        """Return the batch of `LatentBatches` with local times `t_tex`, `t_sem` (n,), which parts are in the loss (`in_loss`,
        (n, 2) bool, texture first, unless always both are) and what REPA needs.
        """
        batch = self.batches.batch(step, part)
        times = draw_times(self.order.batch_size, self.variant, self.batches.generator("time", step))
        batch |= {"t_tex": times.t_tex[part], "t_sem": times.t_sem[part]}
        if times.active is not None:
            batch["in_loss"] = torch.stack([times.active.texture, times.active.semantic], dim=1)[part]
        if self.weights.repa > 0:
            rows, mirrored = self.order.rows(step)[part].numpy(), self.batches.mirrored(step)[part]
            batch["tokens"] = cast(RepaTargets, self.tokens).read(rows, mirrored)
        return batch

    def loss(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the terms of `flow_loss`, and with an inner head its total for that as `inner`."""
        x1, times = batch["x1"], LocalTimes(batch["t_tex"], batch["t_sem"])
        path = sample_path(batch["noise"], x1, times, self.n_texture)
        output = self.model(path.x_t, times.t_tex, times.t_sem, batch["labels"])
        active = Active(*batch["in_loss"].unbind(1)) if "in_loss" in batch else None
        repa = None
        if self.weights.repa > 0:
            tokens = cast(RepaTargets, self.tokens).tokens(batch["tokens"]).float()
            repa = repa_loss(output.repa_tokens, tokens, self.variant.repa.mode)
        terms = flow_loss(output.prediction, path.velocity, self.n_texture, self.weights, active, repa).named()
        if self.variant.inner is not None:
            plain = replace(self.weights, repa=0.0)
            inner = flow_loss(output.inner, path.velocity, self.n_texture, plain, active).total
            terms |= {"loss": terms["loss"] + self.variant.inner.weight * inner, "inner": inner}
        return terms


class GaussianTask:
    """DiT: epsilon and a learned range of variances at discrete noise levels (arXiv 2212.09748)."""

    def __init__(self, model: DiT, batches: LatentBatches) -> None:
        self.model, self.batches, self.order = model, batches, batches.order
        self.process = GaussianProcess()

    def batch(self, step: int, part: slice) -> Mapping[str, Tensor]:
        """Return the batch of `LatentBatches` with noise `levels` (n,)."""
        batch = self.batches.batch(step, part)
        levels = self.process.sample_steps(self.order.batch_size, self.batches.generator("time", step))
        return batch | {"levels": levels[part]}

    def loss(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the terms of `GaussianProcess.hybrid_loss`."""
        latents, noise, levels = batch["x1"], batch["noise"], batch["levels"]
        x = self.process.add_noise(latents, noise, levels)
        output = self.model(x, self.process.model_levels(levels), batch["labels"])
        return self.process.hybrid_loss(output, latents, noise, levels).named()
