"""The texture VAE as the loop trains it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sfd_core.data.store.shards import ShardArray
from sfd_core.experiment.params import TrainedVAEParams
from sfd_core.host.seeding import batch_noise
from sfd_core.models.vaes.texture_vae import TextureVAE, texture_vae_loss
from sfd_core.training.batches import BatchOrder


def to_signed(images: Tensor) -> Tensor:
    """uint8 images -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


class TextureVAETask:
    """Images (uint8 (3, R, R) a row) and their mirror images through the texture VAE."""

    def __init__(self, vae: TextureVAE, images: ShardArray, params: TrainedVAEParams) -> None:
        self.model, self.images, self.kl_weight = vae, images, params.kl_weight
        self.seed = params.optimisation.seed
        self.order = BatchOrder(len(images), params.optimisation.batch_size, self.seed)

    def batch(self, step: int, part: slice) -> Mapping[str, Tensor]:
        """Return images (n, 3, R, R) uint8, which of them to mirror (n,), and noise (n, C, g, g)."""
        side = self.images.shape[-1] // self.model.shape.downsampling
        return {
            "images": torch.from_numpy(self.images.take(self.order.rows(step)[part].numpy())),
            "mirrored": self.order.mirrored(step)[part],
            "noise": batch_noise(
                self.order.batch_size, part, (self.model.shape.channels, side, side), self.seed, "posterior", step
            ),
        }

    def loss(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the terms of `texture_vae_loss`."""
        images = to_signed(batch["images"])
        mirrored = batch["mirrored"][:, None, None, None]
        images = torch.where(mirrored, images.flip(-1), images).contiguous(memory_format=torch.channels_last)
        posterior = self.model.encode(images)
        return texture_vae_loss(images, posterior, self.model.decode(posterior.sample(batch["noise"])), self.kl_weight)
