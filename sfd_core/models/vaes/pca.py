"""Principal components of patch tokens, the semantic latent of ReDi (arXiv 2504.16064)."""

from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor, nn

from sfd_core.host.errors import DataError


class PCA(nn.Module):
    """Projects tokens (N, C, g, g) to coordinates (N, c, g, g) along their first c principal components, and back."""

    mean: Tensor
    components: Tensor

    def __init__(self, mean: Tensor, components: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)

    @property
    def channels(self) -> int:
        """Number of components c."""
        return self.components.shape[0]

    @classmethod
    def fit(cls, blocks: Iterable[Tensor], channels: int) -> Self:
        """Fit exactly to blocks (N, C, g, g) in one pass, in float64; components are ordered by decreasing variance.

        Raises `DataError` if there are no tokens or fewer token channels than components.
        """
        count, total, products = 0, torch.zeros(0), torch.zeros(0)
        for block in blocks:
            rows = block.detach().double().transpose(0, 1).flatten(1)
            if count == 0:
                total, products = (
                    torch.zeros_like(rows[:, 0]),
                    torch.zeros(len(rows), len(rows), dtype=rows.dtype, device=rows.device),
                )
            count += rows.shape[1]
            total += rows.sum(1)
            products += rows @ rows.T
        if count == 0 or channels > len(total):
            raise DataError(f"{channels} principal components cannot be fitted to {count} tokens of {len(total)} channels")
        mean = total / count
        _, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
        components = vectors[:, -channels:].flip(1).T
        # The sign of a component is arbitrary; fix it, so that equal data give equal latents on every machine.
        signs = torch.gather(components, 1, components.abs().argmax(1, keepdim=True)).sign()
        return cls(mean.float(), (components * signs).float().contiguous())

    def encode(self, tokens: Tensor) -> Tensor:
        """Return coordinates (N, c, g, g) of tokens (N, C, g, g)."""
        return torch.einsum("kc,nchw->nkhw", self.components, tokens - self.mean[:, None, None])

    def decode(self, z_sem: Tensor) -> Tensor:
        """Return the tokens (N, C, g, g) of coordinates (N, c, g, g)."""
        return torch.einsum("kc,nkhw->nchw", self.components, z_sem) + self.mean[:, None, None]
