"""The Semantic VAE as the loop trains it."""

from collections.abc import Mapping

from torch import Tensor

from sfd_core.composite import ChannelStatistics
from sfd_core.config import SemanticVAEParams
from sfd_core.models.semantic_vae import SemanticVAE, semantic_vae_loss
from sfd_core.seeding import generator
from sfd_core.tokens import TokenSource
from sfd_core.training.batches import BatchOrder


class SemanticVAETask:
    """Patch tokens of images or their mirror images through the Semantic VAE, standardised per channel."""

    def __init__(self, vae: SemanticVAE, tokens: TokenSource, statistics: ChannelStatistics, params: SemanticVAEParams) -> None:
        self.model, self.tokens, self.statistics, self.kl_weight = vae, tokens, statistics, params.kl_weight
        self.seed = params.optimisation.seed
        self.order = BatchOrder(len(tokens), params.optimisation.batch_size, self.seed)

    def loss(self, step: int) -> Mapping[str, Tensor]:
        """Return the terms of `semantic_vae_loss`."""
        device = next(self.model.parameters()).device
        chosen = self.tokens.chosen(self.order.rows(step).numpy(), self.order.mirrored(step))
        tokens = self.statistics.normalise(chosen.to(device).float())
        posterior = self.model.encode(tokens)
        decoded = self.model.decode(posterior.sample(generator(self.seed, "posterior", step)))
        terms = semantic_vae_loss(decoded, tokens, posterior, self.kl_weight)
        return {"loss": terms.total, "mse": terms.mse, "cosine": terms.cosine, "kl": terms.kl}
