"""The texture VAE as the loop trains it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sfd_core.config import TrainedVAEParams
from sfd_core.data.shards import ShardArray
from sfd_core.models.texture_vae import TextureVAE, texture_vae_loss
from sfd_core.seeding import generator
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

    def loss(self, step: int) -> Mapping[str, Tensor]:
        """Return the terms of `texture_vae_loss`."""
        device = next(self.model.parameters()).device
        images = to_signed(torch.from_numpy(self.images.take(self.order.rows(step).numpy())).to(device))
        mirrored = self.order.mirrored(step).to(device)[:, None, None, None]
        images = torch.where(mirrored, images.flip(-1), images).contiguous(memory_format=torch.channels_last)
        posterior = self.model.encode(images)
        decoded = self.model.decode(posterior.sample(generator(self.seed, "posterior", step)))
        return texture_vae_loss(images, posterior, decoded, self.kl_weight)
