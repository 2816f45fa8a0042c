"""What the loop trains to make latents: the texture VAE on pixels and the Semantic VAE on patch tokens."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sfd_core.composite import ChannelStatistics
from sfd_core.config import SemanticVAEParams, TextureVAEParams
from sfd_core.data.shards import ShardArray
from sfd_core.models.semantic_vae import SemanticVAE, semantic_vae_loss
from sfd_core.models.texture_vae import TextureVAE, texture_vae_loss
from sfd_core.seeding import generator
from sfd_core.training.batches import BatchOrder


def to_signed(images: Tensor) -> Tensor:
    """uint8 images -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


class TextureVAETask:
    """Images (uint8 (3, R, R) a row) and their mirror images through the texture VAE."""

    def __init__(self, vae: TextureVAE, images: ShardArray, params: TextureVAEParams) -> None:
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


class SemanticVAETask:
    """Patch tokens (float16 (2, C, g, g) a row: image, mirror image) through the Semantic VAE, standardised per channel."""

    def __init__(self, vae: SemanticVAE, tokens: ShardArray, statistics: ChannelStatistics, params: SemanticVAEParams) -> None:
        self.model, self.tokens, self.statistics, self.kl_weight = vae, tokens, statistics, params.kl_weight
        self.seed = params.optimisation.seed
        self.order = BatchOrder(len(tokens), params.optimisation.batch_size, self.seed)

    def loss(self, step: int) -> Mapping[str, Tensor]:
        """Return the terms of `semantic_vae_loss`."""
        device = next(self.model.parameters()).device
        pairs = torch.from_numpy(self.tokens.take(self.order.rows(step).numpy()))
        tokens = pairs[torch.arange(len(pairs)), self.order.mirrored(step).long()].to(device)
        tokens = self.statistics.normalise(tokens.float())
        posterior = self.model.encode(tokens)
        decoded = self.model.decode(posterior.sample(generator(self.seed, "posterior", step)))
        terms = semantic_vae_loss(decoded, tokens, posterior, self.kl_weight)
        return {"loss": terms.total, "mse": terms.mse, "cosine": terms.cosine, "kl": terms.kl}
