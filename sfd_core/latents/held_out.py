"""Held-out latents with fixed noise, on which the errors of denoisers of different steps and experiments compare."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sfd_core.data.store.shards import ShardReader, evenly_spaced
from sfd_core.host.seeding import sample_noise
from sfd_core.latents.composite import Composite
from sfd_core.latents.stored import SEMANTIC_LATENTS, StoredLatent

SEED = 0
"""Of the noise; errors are compared across experiments, so it is no parameter."""
Batch = tuple[Tensor, Tensor, Tensor]
"""Noise (N, C, g, g), data (N, C, g, g) and labels (N,)."""


@dataclass(frozen=True)
class HeldOutLatents:
    """Composite latents of evenly spaced held-out images; all tensors are on the CPU."""

    x0: Tensor
    """Noise (N, C, g, g), the same for every denoiser."""
    x1: Tensor
    """Normalised data (N, C, g, g)."""
    labels: Tensor
    """(N,); zeros for a denoiser without classes."""

    @classmethod
    def read(cls, shard: ShardReader, composite: Composite, semantic: str, images: int, purpose: str, labelled: bool) -> Self:
        """Take `images` of the held-out shard of stage `encode`, or all there are; `purpose` names the noise."""
        rows = evenly_spaced(len(shard), images)
        plain = torch.zeros(len(rows), dtype=torch.bool)
        names = [name for name in ("z_tex", SEMANTIC_LATENTS[semantic]) if name is not None]
        x1 = composite.join(*(StoredLatent(shard, name).frozen(rows, plain) for name in names))
        labels = torch.from_numpy(shard["label"].take(rows)) if labelled else plain.long()
        return cls(sample_noise(SEED, rows.tolist(), tuple(x1.shape[1:]), purpose), x1, labels)

    def __len__(self) -> int:
        return len(self.x1)

    def batches(self, size: int, device: torch.device) -> Iterator[Batch]:
        """Yield all of them, at most `size` at a time, on `device`."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.x0[part].to(device), self.x1[part].to(device), self.labels[part].to(device)
