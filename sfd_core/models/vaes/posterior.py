"""The diagonal normal distribution that a VAE's encoder predicts for each image."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

LOG_VARIANCE_RANGE = (-30.0, 20.0)
"""Range of the latent-diffusion VAEs; outside it exp() overflows or vanishes in float32."""


@dataclass(frozen=True)
class Posterior:
    """Mean and log-variance (N, C, g, g) of a latent."""

    mean: Tensor
    log_variance: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> Self:
        """Split an encoder's output (N, 2 C, g, g) into mean and clamped log-variance."""
        mean, log_variance = moments.chunk(2, dim=1)
        return cls(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    @property
    def std(self) -> Tensor:
        """Standard deviation (N, C, g, g)."""
        return torch.exp(0.5 * self.log_variance)

    def sample(self, noise: Tensor) -> Tensor:
        """Return latents (N, C, g, g) made of standard normal noise of that shape (reparametrised)."""
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """Return the KL divergence from a standard normal (N,), in nats, summed over each latent."""
        terms = self.mean.square() + self.log_variance.exp() - 1 - self.log_variance
        return 0.5 * terms.flatten(1).sum(1)
