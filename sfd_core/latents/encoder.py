"""Encodes images and tokens to the latents for training denoisers. N images, C channels, g side of the latent grid."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfd_core.experiment.params import EncodeParams
from sfd_core.host.errors import NumericsError
from sfd_core.latents.composite import ChannelStatistics
from sfd_core.latents.compressors import SemanticCompressors
from sfd_core.latents.stored import Rows, field_names, frozen_noise
from sfd_core.models.vaes.image_vae import ImageVAE
from sfd_core.models.vaes.posterior import Posterior

COARSEST = 1 / 32
"""Largest float16 step near a channel's values, in standard deviations; the rounding error is then 1 % of a deviation."""


class LatentEncoder:
    """Encodes images and tokens to the fields of stored latents (see `sfd_core.latents.stored`)."""

    def __init__(self, params: EncodeParams, vae: ImageVAE, compressors: SemanticCompressors, device: torch.device) -> None:
        self.params, self.device = params, device
        self.vae, self.compressors = vae.to(device), compressors.to(device)

    @torch.no_grad()
    def encode(self, images: NDArray[np.uint8], tokens: Tensor, part: str, rows: Rows) -> dict[str, Tensor]:
        """Return the fields (N, 2, C, g, g) of images (N, 3, R, R) and tokens (N, 2, C, g, g), those of `rows` (N,) of a part.

        The posterior sample of a row depends only on seed, part and row. Every standard deviation, e^-15 to e^10, fits into
        float16; the smallest lose a tenth, which changes a latent by less than the rounding of its mean. Raises
        `NumericsError` with field and rows for values that are not finite or too large for float16.
        """
        pixels = torch.from_numpy(images).to(self.device).float() / 127.5 - 1
        pairs = torch.stack([pixels, pixels.flip(-1)], dim=1)
        normalised = self.compressors.statistics.normalise(tokens.to(self.device).float().flatten(0, 1))
        texture = self.vae.encode(pairs.flatten(0, 1))
        semantic = self.compressors.vae.encode(normalised)
        values = {
            **self._fields("z_tex", texture, part, rows),
            **self._fields("z_sem", semantic, part, rows),
            "z_pca": self.compressors.pca.encode(normalised),
        }
        return {field: self._cast(field, value, part, rows) for field, value in values.items()}

    def _fields(self, name: str, posterior: Posterior, part: str, rows: Rows) -> dict[str, Tensor]:
        fields = field_names(name, self.params.posterior)
        if self.params.posterior == "moments":
            return dict(zip(fields, (posterior.mean, posterior.std), strict=True))
        noise = frozen_noise(name, part, self.params.seed, rows, tuple(posterior.mean.shape[1:]))
        return {fields[0]: posterior.sample(noise.flatten(0, 1).to(self.device))}

    def _cast(self, field: str, values: Tensor, part: str, rows: Rows) -> Tensor:
        dtype = {"float16": torch.float16, "float32": torch.float32}[self.params.dtype]
        stored = values.reshape(-1, 2, *values.shape[1:]).to(dtype)
        finite = torch.isfinite(stored).flatten(1).all(dim=1)
        if not bool(finite.all()):
            broken = [int(rows[index]) for index in torch.nonzero(~finite).flatten().tolist()]
            raise NumericsError(f"{field} of {part} images {_format_rows(broken)} {self._problem(values)}")
        return stored

    def _problem(self, values: Tensor) -> str:
        if not bool(torch.isfinite(values).all()):
            return "holds NaN or infinity; check the weights and losses of its encoder"
        return (
            f"reaches {values.abs().max().item():.4g}, but the largest float16 is {torch.finfo(torch.float16).max:.0f}; "
            "set encode.dtype to float32"
        )


@torch.no_grad()
def pixel_energy(vae: ImageVAE, z: Tensor, statistics: ChannelStatistics) -> Tensor:
    """Return the share of each texture channel in the energy of the pixels (C,), float32, over latents z (N, C, g, g).

    The energy of a channel is the mean square of how much the decoded image changes when the channel is replaced by its mean.
    """
    decoded = vae.decode(z)
    energies = []
    for channel, mean in enumerate(statistics.mean.to(z)):
        without = z.clone()
        without[:, channel] = mean
        energies.append((vae.decode(without) - decoded).double().square().mean())  # float32 would round by threads
    shares = torch.stack(energies).cpu()
    return (shares / shares.sum()).float()


def require_resolved(statistics: Mapping[str, ChannelStatistics], params: EncodeParams, slack: float = 1.0) -> None:
    """Raise `NumericsError` for channels whose values vary too little, by more than `slack`, for the resolution of float16."""
    if params.dtype == "float32":
        return
    for name, channels in statistics.items():
        exponent = (channels.mean.abs() + channels.std).log2().floor().clamp(min=-14)  # below 2^-14 the steps stay the same
        steps = torch.exp2(exponent - 10)
        coarse = torch.nonzero(steps > slack * COARSEST * channels.std).flatten().tolist()
        if coarse:
            first = coarse[0]
            raise NumericsError(
                f"{name} latents: channels {coarse} vary too little for float16 (channel {first}: "
                f"{channels.mean[first].item():.4g} +- {channels.std[first].item():.4g}, in steps of "
                f"{steps[first].item():.4g}); set encode.dtype to float32"
            )


def _format_rows(rows: list[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:5])
    return shown if len(rows) <= 5 else f"{shown} and {len(rows) - 5} more"
