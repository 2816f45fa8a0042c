"""The Semantic VAE as the loop trains it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sfd_core.composite import ChannelStatistics
from sfd_core.config import SemanticVAEParams
from sfd_core.data.shards import ShardArray
from sfd_core.models.semantic_vae import SemanticVAE, semantic_vae_loss
from sfd_core.seeding import generator
from sfd_core.training.batches import BatchOrder


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
