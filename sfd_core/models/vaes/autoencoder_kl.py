"""The AutoencoderKL of latent diffusion (Rombach et al., arXiv 2112.10752), as diffusers builds it.

Examples: SD-VAE and VA-VAE f16d32, Stable Diffusion's f8d4. Shapes as in `image_vae`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sfd_core.host.errors import DataError
from sfd_core.models.vaes.image_vae import LatentShape, PublishedVAE, in_chunks
from sfd_core.models.vaes.posterior import Posterior

CONFIG_KEYS = (
    "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block",
    "act_fn", "latent_channels", "norm_num_groups", "use_quant_conv", "use_post_quant_conv",
    "mid_block_add_attention",
)  # fmt: skip
"""Keys that determine the network; diffusers' other keys scale latents for its pipelines, or speed up large images."""


class AutoencoderKLVAE(PublishedVAE):
    """A published VAE: diffusers' AutoencoderKL, its name and the hash of its file."""

    kind: ClassVar[str] = "autoencoder-kl"

    def __init__(self, network: Any, origin: Mapping[str, str]) -> None:
        config = network.config
        shape = LatentShape(config["latent_channels"], 2 ** (len(config["block_out_channels"]) - 1))
        super().__init__(network, shape, origin)

    @classmethod
    def from_description(cls, description: Mapping[str, Any], origin: Mapping[str, str]) -> Self:
        """Build the network of `description` on the meta device, ready for loading weights."""
        return cls(build_network(description), origin)

    def encode(self, images: Tensor) -> Posterior:
        """Encode a few images at a time."""
        moments = in_chunks(lambda part: self.network.encode(part).latent_dist.parameters, images, images[0, 0].numel())
        return Posterior.from_moments(moments)

    def decode(self, z: Tensor) -> Tensor:
        """Decode a few latents at a time."""
        pixels = z[0, 0].numel() * self.shape.downsampling**2
        return in_chunks(lambda part: self.network.decode(part).sample, z, pixels)

    def description(self) -> Mapping[str, Any]:
        """Return the arguments of diffusers' AutoencoderKL."""
        return {key: self.network.config[key] for key in CONFIG_KEYS}


def build_network(config: Mapping[str, Any]) -> Any:
    """Return diffusers' AutoencoderKL for `config` (keys: `CONFIG_KEYS`) on the meta device.

    Raises `DataError` for impossible sizes.
    """
    # diffusers takes seconds to import; only published VAEs need it.
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    try:
        with torch.device("meta"):
            return AutoencoderKL(**config)
    except (ValueError, TypeError) as error:
        raise DataError(f"no AutoencoderKL has these sizes ({error}); give the checkpoint of a KL VAE") from error
