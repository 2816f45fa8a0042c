"""The Semantic VAE as the loop trains it."""

from collections.abc import Mapping

from torch import Tensor

from sfd_core.experiment.params import SemanticVAEParams
from sfd_core.host.seeding import batch_noise
from sfd_core.latents.composite import ChannelStatistics
from sfd_core.latents.tokens import TokenSource
from sfd_core.models.vaes.semantic_vae import SemanticVAE, semantic_vae_loss
from sfd_core.training.batches import BatchOrder


class SemanticVAETask:
    """Patch tokens of images or their mirror images through the Semantic VAE, standardised per channel.

    `statistics` lie on the VAE's device.
    """

    def __init__(self, vae: SemanticVAE, tokens: TokenSource, statistics: ChannelStatistics, params: SemanticVAEParams) -> None:
        self.model, self.tokens, self.statistics, self.kl_weight = vae, tokens, statistics, params.kl_weight
        self.seed = params.optimisation.seed
        self.order = BatchOrder(len(tokens), params.optimisation.batch_size, self.seed)

    def batch(self, step: int, part: slice) -> Mapping[str, Tensor]:
        """Return what the tokens are made of, see `RepaTargets.read`, and noise (n, c, g, g)."""
        rows, mirrored = self.order.rows(step)[part], self.order.mirrored(step)[part]
        shape = (self.model.channels, self.tokens.grid, self.tokens.grid)
        noise = batch_noise(self.order.batch_size, part, shape, self.seed, "posterior", step)
        return {"noise": noise, "tokens": self.tokens.read(rows.numpy(), mirrored)}

    def loss(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the terms of `semantic_vae_loss`."""
        tokens = self.statistics.normalise(self.tokens.tokens(batch["tokens"]).float())
        posterior = self.model.encode(tokens)
        return semantic_vae_loss(self.model.decode(posterior.sample(batch["noise"])), tokens, posterior, self.kl_weight)
