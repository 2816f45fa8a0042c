"""How latents lie in a shard, and how a stored row becomes a latent: the one place that knows.

Stage `encode` writes `z_tex`, `z_sem` and `z_pca`, each a pair (2, C, g, g): the latent of an image and of its mirror image. A
field of that name holds the latent itself: a frozen sample of the VAE's posterior, or PCA's coordinates, which have none. With
`encode.posterior: moments` the fields `<name>_mean` and `<name>_std` hold the posterior instead, and whoever reads them draws.
Shapes: N images, C channels, g side of the latent grid.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.host.seeding import sample_noise

PosteriorKind = Literal["sample", "moments"]
Rows = NDArray[np.int64] | Sequence[int]
NoiseFn = Callable[[tuple[int, ...]], Tensor]

POSTERIORS = {"z_tex": "texture", "z_sem": "semantic"}
"""Latents that are drawn of a VAE's posterior -> what their noise is for."""
SEMANTIC_LATENTS = {"none": None, "vae": "z_sem", "pca": "z_pca"}
"""What a variant generates beside texture -> its latent."""


def field_names(name: str, posterior: PosteriorKind) -> tuple[str, ...]:
    """Return the fields that hold the latent `name`: itself, or its posterior's mean and standard deviation."""
    return (f"{name}_mean", f"{name}_std") if posterior == "moments" and name in POSTERIORS else (name,)


def latent_fields(posterior: PosteriorKind, channels: Mapping[str, int], dtype: str, grid: int) -> dict[str, FieldSpec]:
    """Return the fields of a shard that holds latents of so many `channels` each."""
    return {
        field: FieldSpec(dtype, (2, count, grid, grid))
        for name, count in channels.items()
        for field in field_names(name, posterior)
    }


def posterior_meta(posterior: PosteriorKind, part: str, seed: int) -> dict[str, Any]:
    """Return what the manifest of `part` says besides, so that a reader of moments can draw the sample that would be frozen."""
    return {"posterior": {"part": part, "seed": seed}} if posterior == "moments" else {}


def frozen_noise(name: str, part: str, seed: int, rows: Rows, shape: tuple[int, ...]) -> Tensor:
    """Return the noise (N, 2, *shape) of the frozen posterior sample; row k depends on seed, part and `rows[k]` only."""
    return sample_noise(seed, [int(row) for row in rows], (2, *shape), f"{part} {POSTERIORS[name]}")


def moments_of(fields: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor | None]:
    """Return mean and deviation (2N, C, g, g) of the latent `name` in a batch of stored fields (N, 2, C, g, g).

    A latent that is stored itself is its own mean and has no deviation.
    """
    if name in fields:
        return fields[name].flatten(0, 1), None
    mean, std = (fields[field].flatten(0, 1) for field in field_names(name, "moments"))
    return mean, std


class StoredLatent:
    """One latent of the images of a part, by row, whichever way it is stored; float32, on the CPU.

    `mirrored` (N,), bool, says of which images the mirror image is wanted. Raises `DataError` if the shard does not hold it.
    """

    def __init__(self, shard: ShardReader, name: str) -> None:
        moments = name not in shard and field_names(name, "moments")[0] in shard
        self.fields = field_names(name, "moments" if moments else "sample")
        self._name, self._shard = name, shard
        _, _, self.channels, self.grid, _ = shard[self.fields[0]].shape
        # of each pair only what is wanted is read: as (2N, C, g, g), image i lies at 2i and its mirror image behind it
        self._arrays = [shard[field].flattened() for field in self.fields]

    def require_finite(self) -> None:
        """Raise `NumericsError` that names field and row of the first value that is not finite."""
        for field in self.fields:
            self._shard.require_finite(field)

    def draw(self, rows: Rows, mirrored: Tensor, noise: NoiseFn) -> Tensor:
        """Return latents (N, C, g, g) to train on: a fresh sample of the posterior, or the frozen one where that is stored.

        `noise` gives standard normal noise (N, C, g, g) for a shape (C, g, g).
        """
        mean, std = self._moments(rows, mirrored)
        return mean if std is None else mean + std * noise(tuple(mean.shape[1:]))

    def frozen(self, rows: Rows, mirrored: Tensor) -> Tensor:
        """Return latents (N, C, g, g) that stay the same: the frozen sample, or what it would be but for rounding."""
        mean, std = self._moments(rows, mirrored)
        if std is None:
            return mean
        meta = self._shard.meta["posterior"]
        noise = frozen_noise(self._name, meta["part"], meta["seed"], rows, tuple(mean.shape[1:]))
        return mean + std * _chosen(noise, mirrored)

    def central(self, rows: Rows, mirrored: Tensor) -> Tensor:
        """Return the best estimate of latents (N, C, g, g): the posterior's mean, or the frozen sample where that is stored."""
        return self._moments(rows, mirrored)[0]

    def _moments(self, rows: Rows, mirrored: Tensor) -> tuple[Tensor, Tensor | None]:
        wanted = 2 * np.asarray(rows) + mirrored.numpy()
        mean, *std = (torch.from_numpy(array.take(wanted)).float() for array in self._arrays)
        return mean, std[0] if std else None


def _chosen(pairs: Tensor, mirrored: Tensor) -> Tensor:
    """Pairs (N, 2, C, g, g) of image and mirror image -> the chosen ones (N, C, g, g)."""
    return pairs[torch.arange(len(pairs)), mirrored.long()]
