"""Images and encoder tokens to the latents that denoisers are trained on. N images, C channels, g side of the latent grid."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfd_core.compressors import SemanticCompressors
from sfd_core.config import EncodeParams
from sfd_core.models.image_vae import ImageVAE
from sfd_core.seeding import sample_noise


class LatentEncoder:
    """All that turns a block of images and their tokens into latents."""

    def __init__(self, params: EncodeParams, vae: ImageVAE, compressors: SemanticCompressors, device: torch.device) -> None:
        self.params, self.device = params, device
        self.vae, self.compressors = vae.to(device), compressors.to(device)

    @torch.no_grad()
    def encode(self, images: NDArray[np.uint8], tokens: Tensor, part: str, first_row: int) -> dict[str, Tensor]:
        """Return z_tex, z_sem, z_pca (N, 2, C, g, g) of images (N, 3, R, R) and tokens (N, 2, C, g, g).

        The posterior sample of a row depends on the seed, the part and the row only.
        """
        pixels = torch.from_numpy(images).to(self.device).float() / 127.5 - 1
        pairs = torch.stack([pixels, pixels.flip(-1)], dim=1)
        normalised = self.compressors.statistics.normalise(tokens.to(self.device).float().flatten(0, 1))
        texture = self.vae.encode(pairs.flatten(0, 1))
        semantic = self.compressors.vae.encode(normalised)
        rows = list(range(first_row, first_row + len(images)))
        return {
            "z_tex": self._pairs(texture.sample(self._noise(f"{part} texture", rows, texture.mean))),
            "z_sem": self._pairs(semantic.sample(self._noise(f"{part} semantic", rows, semantic.mean))),
            "z_pca": self._pairs(self.compressors.pca.encode(normalised)),
        }

    def _noise(self, purpose: str, rows: list[int], like: Tensor) -> Tensor:
        noise = sample_noise(self.params.seed, rows, (2, *like.shape[1:]), purpose)
        return noise.flatten(0, 1).to(like.device)

    def _pairs(self, latents: Tensor) -> Tensor:
        dtype = {"float16": torch.float16, "float32": torch.float32}[self.params.dtype]
        return latents.reshape(-1, 2, *latents.shape[1:]).to(dtype)
