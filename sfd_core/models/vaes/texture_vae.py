"""An image VAE that trains in minutes on a small data set: a PCA of patches plus a convolutional residual.

Shapes: N images, R pixels a side, f pixels per latent position, g = R/f, C latent channels.
The linear part is exact from the first step; the residual sees neighbouring patches and removes the seams.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfd_core.models.vaes.image_vae import ImageVAE, LatentShape
from sfd_core.models.vaes.posterior import Posterior

INITIAL_LOG_VARIANCE = -4.6
"""Before training, posterior noise is a tenth of the latent's standard deviation."""


@dataclass(frozen=True)
class TextureVAEShape(LatentShape):
    """Sizes that determine the network."""

    width: int
    depth: int


class ResidualBlock(nn.Module):
    """Residual block of two 3x3 convolutions; the identity at the start of training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups=8, num_channels=width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = _zeroed(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, h, w) to the same shape."""
        hidden: Tensor = self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))
        return x + hidden


class TextureEncoder(nn.Module):
    """Maps images (N, 3, R, R) in [-1, 1] to the posterior of the texture latent (N, C, g, g)."""

    def __init__(self, shape: TextureVAEShape) -> None:
        super().__init__()
        self.shape = shape
        half = shape.downsampling // 2
        self.linear = nn.Conv2d(3 * shape.downsampling**2, shape.channels, 1)
        self.stem = nn.Conv2d(3 * half**2, shape.width, 3, padding=1)
        self.down = nn.Conv2d(shape.width, shape.width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*[ResidualBlock(shape.width) for _ in range(shape.depth)])
        self.out = _zeroed(nn.Conv2d(shape.width, 2 * shape.channels, 3, padding=1))
        with torch.no_grad():
            cast(Tensor, self.out.bias)[shape.channels :] = INITIAL_LOG_VARIANCE

    def forward(self, images: Tensor) -> Posterior:
        """Encode; differentiable."""
        factor = self.shape.downsampling
        hidden = self.down(F.silu(self.stem(F.pixel_unshuffle(images, factor // 2))))
        moments = self.out(F.silu(self.blocks(hidden)))
        mean, log_variance = moments.chunk(2, dim=1)
        return Posterior.from_moments(torch.cat([mean + self.linear(F.pixel_unshuffle(images, factor)), log_variance], dim=1))


class TextureDecoder(nn.Module):
    """Maps the texture latent (N, C, g, g) to images (N, 3, R, R)."""

    def __init__(self, shape: TextureVAEShape) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Conv2d(shape.channels, 3 * shape.downsampling**2, 1)
        self.stem = nn.Conv2d(shape.channels, shape.width, 3, padding=1)
        self.blocks = nn.Sequential(*[ResidualBlock(shape.width) for _ in range(shape.depth)])
        self.up = nn.Conv2d(shape.width, 4 * shape.width, 3, padding=1)
        self.fine_blocks = nn.Sequential(*[ResidualBlock(shape.width) for _ in range(shape.depth)])
        self.out = _zeroed(nn.Conv2d(shape.width, 3 * (shape.downsampling // 2) ** 2, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        """Decode; differentiable and not clipped."""
        linear = F.pixel_shuffle(self.linear(z), self.shape.downsampling)
        # Convolutions run at twice the latent's resolution at most, where they are cheap. Each output patch depends on its
        # neighbours, which removes the seams.
        coarse = self.blocks(self.stem(z))
        fine = self.fine_blocks(F.pixel_shuffle(self.up(coarse), 2))
        return linear + F.pixel_shuffle(self.out(F.silu(fine)), self.shape.downsampling // 2)


class TextureVAE(ImageVAE):
    """The image VAE of the default preset."""

    kind: ClassVar[str] = "patch-pca-residual"
    shape: TextureVAEShape

    def __init__(self, shape: TextureVAEShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = TextureEncoder(shape)
        self.decoder = TextureDecoder(shape)

    def encode(self, images: Tensor) -> Posterior:
        """Images (N, 3, R, R) in [-1, 1] -> posterior of latents (N, C, R/f, R/f)."""
        posterior: Posterior = self.encoder(images)
        return posterior

    def decode(self, z: Tensor) -> Tensor:
        """Latents (N, C, g, g) -> images (N, 3, g f, g f), about [-1, 1]."""
        images: Tensor = self.decoder(z)
        return images

    @torch.no_grad()
    def start_from_pca(self, images: Tensor) -> None:
        """Initialise the linear part with whitened principal components of the patches of `images` (N, 3, R, R) in [-1, 1]."""
        factor, channels = self.shape.downsampling, self.shape.channels
        patches = F.pixel_unshuffle(images, factor).permute(0, 2, 3, 1).flatten(0, 2).double()
        mean = patches.mean(0)
        covariance = torch.cov(patches.T)
        variances, components = torch.linalg.eigh(covariance)
        spread = variances[-channels:].flip(0).clamp(min=1e-12).sqrt()
        basis = components[:, -channels:].flip(1)
        _fill(self.encoder.linear, (basis / spread).T, -mean @ (basis / spread))
        _fill(self.decoder.linear, basis * spread, mean)

    def description(self) -> Mapping[str, Any]:
        """Return the fields of its `TextureVAEShape`."""
        return asdict(self.shape)

    def origin(self) -> Mapping[str, str]:
        """Return its name."""
        return {"name": self.kind}


def texture_vae_loss(images: Tensor, posterior: Posterior, decoded: Tensor, kl_weight: float) -> dict[str, Tensor]:
    """Return the terms of the loss: l1 + mse (means over pixels) + kl_weight * KL (sum over a latent, mean over images)."""
    l1, mse, kl = F.l1_loss(decoded, images), F.mse_loss(decoded, images), posterior.kl().mean()
    return {"loss": l1 + mse + kl_weight * kl, "l1": l1, "mse": mse, "kl": kl}


def psnr(images: Tensor, decoded: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image (N,) in dB, for values in [-1, 1]; of an exact one 106."""
    errors = (images - decoded.clamp(-1, 1)).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / errors.clamp(min=1e-10))


def _zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _fill(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    conv.weight.copy_(weight[:, :, None, None])
    cast(Tensor, conv.bias).copy_(bias)
