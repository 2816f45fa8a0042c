"""The Semantic VAE: patch tokens to a semantic latent and back (SFD, arXiv 2512.04926, section 3.1).

Shapes: N images, C token channels, c latent channels, g positions along a side, T = g^2 tokens.
Parameter names are those of the public checkpoints (`encoder.N...`).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from sfd_core.models.vaes.posterior import Posterior


class TokenBlock(nn.Module):
    """Pre-norm self-attention and GELU perceptron (ratio 4) over tokens (N, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (N, T, width) for tokens (N, T, width)."""
        normed = self.norm1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        updated: Tensor = x + self.mlp(self.norm2(x))
        return updated


class SemanticVAE(nn.Module):
    """Compresses patch tokens (N, C, g, g) to a semantic latent (N, c, g, g); has no position embeddings, so any grid works."""

    def __init__(self, in_channels: int, channels: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.in_channels, self.channels, self.width, self.depth = in_channels, channels, width, depth
        self.encoder = _transformer(in_channels, width, depth, heads, out_features=2 * channels)
        self.decoder = _transformer(channels, width, depth, heads, out_features=in_channels)

    def encode(self, tokens: Tensor) -> Posterior:
        """Return the posterior of the latents (N, c, g, g) of tokens (N, C, g, g), standardised as in training."""
        return Posterior.from_moments(_on_grid(self.encoder, tokens))

    def decode(self, z_sem: Tensor) -> Tensor:
        """Return standardised tokens (N, C, g, g) for latents (N, c, g, g)."""
        return _on_grid(self.decoder, z_sem)


def semantic_vae_loss(reconstruction: Tensor, tokens: Tensor, posterior: Posterior, kl_weight: float) -> dict[str, Tensor]:
    """Return the loss, mse + cosine + kl_weight * kl, and these terms in float32 for reconstruction and tokens (N, C, g, g).

    `cosine` is 1 - similarity over the features of a position, as in the paper; the public code computes it over positions.
    `kl` is in nats per image.
    """
    reconstruction, tokens = reconstruction.float(), tokens.float()
    mse = F.mse_loss(reconstruction, tokens)
    cosine = 1 - F.cosine_similarity(reconstruction, tokens, dim=1).mean()
    kl = posterior.kl().float().mean()
    return {"loss": mse + cosine + kl_weight * kl, "mse": mse, "cosine": cosine, "kl": kl}


def _transformer(in_features: int, width: int, depth: int, heads: int, out_features: int) -> nn.Sequential:
    blocks = (TokenBlock(width, heads) for _ in range(depth))
    return nn.Sequential(nn.Linear(in_features, width), *blocks, nn.LayerNorm(width), nn.Linear(width, out_features))


def _on_grid(network: nn.Module, x: Tensor) -> Tensor:
    n, _, height, width = x.shape
    features: Tensor = network(x.flatten(2).transpose(1, 2))
    return features.transpose(1, 2).reshape(n, -1, height, width)
