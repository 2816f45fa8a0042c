"""Representation autoencoders (RAE, arXiv 2510.11690), as diffusers builds them.

A frozen vision transformer makes the latents, its patch tokens normalised by published statistics; a trained one decodes them.
Shapes as in `image_vae`; the latents have no distribution, so their variance is the least that a posterior has.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sfd_core.host.errors import DataError
from sfd_core.models.vaes.image_vae import LatentShape, PublishedVAE, in_chunks
from sfd_core.models.vaes.posterior import LOG_VARIANCE_RANGE, Posterior

NETWORK_KEYS = (
    "encoder_type", "encoder_hidden_size", "encoder_patch_size", "encoder_num_hidden_layers", "decoder_hidden_size",
    "decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_intermediate_size", "patch_size",
    "encoder_input_size", "scaling_factor",
)  # fmt: skip
"""Keys of diffusers' configuration that determine network and latents; statistics are among the weights."""
STATISTICS = {"latents_mean": "_latents_mean", "latents_std": "_latents_std"}
"""Arguments of diffusers' network and the weights that hold them."""


class RAEVAE(PublishedVAE):
    """A published RAE: diffusers' AutoencoderRAE, its name and the hash of its file."""

    kind: ClassVar[str] = "autoencoder-rae"

    def __init__(self, network: Any, origin: Mapping[str, str]) -> None:
        super().__init__(network, LatentShape(network.config["encoder_hidden_size"], network.config["patch_size"]), origin)

    @classmethod
    def from_description(cls, description: Mapping[str, Any], origin: Mapping[str, str]) -> Self:
        """Build the network of `description`, ready for loading weights."""
        return cls(build_network(description["network"], description["statistics"]), origin)

    def encode(self, images: Tensor) -> Posterior:
        """Encode a few images at a time. Raises `DataError` for images of another size than the decoder's."""
        side = self.network.decoder_image_size
        if images.shape[-1] != side:
            raise DataError(
                f"this RAE decodes images of {side} pixels, but these have {images.shape[-1]}; set resolution to {side}"
            )
        z = in_chunks(lambda part: self.network.encode(part / 2 + 0.5).latent, images, images[0, 0].numel())
        return Posterior(z, torch.full_like(z, LOG_VARIANCE_RANGE[0]))

    def decode(self, z: Tensor) -> Tensor:
        """Decode a few latents at a time."""
        pixels = z[0, 0].numel() * self.shape.downsampling**2
        return in_chunks(lambda part: self.network.decode(part).sample * 2 - 1, z, pixels)

    def description(self) -> Mapping[str, Any]:
        """Return what `build_network` needs."""
        statistics = {key: list(getattr(self.network, name).shape) for key, name in STATISTICS.items()}
        return {"network": {key: self.network.config[key] for key in NETWORK_KEYS}, "statistics": statistics}


def build_network(config: Mapping[str, Any], statistics: Mapping[str, list[int]]) -> Any:
    """Return diffusers' AutoencoderRAE for `config` (keys: `NETWORK_KEYS`) and shapes of the latents' statistics.

    Raises `DataError` for impossible sizes.
    """
    import transformers  # noqa: F401 - diffusers takes the encoders from it
    from diffusers.models.autoencoders.autoencoder_rae import AutoencoderRAE

    try:
        return AutoencoderRAE(**config, **{key: torch.zeros(shape) for key, shape in statistics.items()})
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise DataError(f"no AutoencoderRAE has these sizes ({error}); give the checkpoint of an RAE") from error
