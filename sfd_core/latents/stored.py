"""The layout of latents in a shard, and how a stored row becomes a latent. No other file knows it.

Stage `encode` writes `z_tex`, `z_sem` and `z_pca`, each a pair (2, C, g, g): the latents of an image and its mirror image. A
field of that name holds the latent itself: one fixed sample of the VAE's posterior, or PCA coordinates. With
`encode.posterior: moments`, the fields `<name>_mean` and `<name>_std` hold the posterior, and readers draw samples from it.
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
"""Latents sampled from a VAE's posterior -> name of their noise."""
SEMANTIC_LATENTS = {"none": None, "vae": "z_sem", "pca": "z_pca"}
"""Value of `semantic` in a variant -> its latent."""


def field_names(name: str, posterior: PosteriorKind) -> tuple[str, ...]:
    """Return the fields of the latent `name`: the latent, or mean and standard deviation of its posterior."""
    return (f"{name}_mean", f"{name}_std") if posterior == "moments" and name in POSTERIORS else (name,)


def latent_fields(posterior: PosteriorKind, channels: Mapping[str, int], dtype: str, grid: int) -> dict[str, FieldSpec]:
    """Return the fields of a shard; `channels` maps latents to their number of channels."""
    return {
        field: FieldSpec(dtype, (2, count, grid, grid))
        for name, count in channels.items()
        for field in field_names(name, posterior)
    }


def posterior_meta(posterior: PosteriorKind, part: str, seed: int) -> dict[str, Any]:
    """Return extra manifest entries, with which a reader of moments can draw the fixed sample."""
    return {"posterior": {"part": part, "seed": seed}} if posterior == "moments" else {}


def frozen_noise(name: str, part: str, seed: int, rows: Rows, shape: tuple[int, ...]) -> Tensor:
    """Return the noise (N, 2, *shape) of the fixed posterior sample; row k depends only on seed, part and `rows[k]`."""
    return sample_noise(seed, [int(row) for row in rows], (2, *shape), f"{part} {POSTERIORS[name]}")


def moments_of(fields: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor | None]:
    """Return mean and deviation (2N, C, g, g) of the latent `name` in a batch of stored fields (N, 2, C, g, g).

    A latent that is stored as a sample is its own mean and has no deviation.
    """
    if name in fields:
        return fields[name].flatten(0, 1), None
    mean, std = (fields[field].flatten(0, 1) for field in field_names(name, "moments"))
    return mean, std


class StoredLatent:
    """One latent of the images of a part, by row, for both ways of storing it; float32, on the CPU.

    `mirrored` (N,), bool, selects the mirror image. Raises `DataError` if the shard does not hold the latent.
    """

    def __init__(self, shard: ShardReader, name: str) -> None:
        moments = name not in shard and field_names(name, "moments")[0] in shard
        self.fields = field_names(name, "moments" if moments else "sample")
        self._name, self._shard = name, shard
        _, _, self.channels, self.grid, _ = shard[self.fields[0]].shape
        # reads only one of each pair: in (2N, C, g, g), image i is at 2i and its mirror image at 2i + 1
        self._arrays = [shard[field].flattened() for field in self.fields]

    def require_finite(self) -> None:
        """Raise `NumericsError` with field and row of the first value that is not finite."""
        for field in self.fields:
            self._shard.require_finite(field)

    def draw(self, rows: Rows, mirrored: Tensor, noise: NoiseFn) -> Tensor:
        """Return latents (N, C, g, g) for training: a new sample of the posterior, or the stored sample.

        `noise` returns standard normal noise (N, C, g, g) for a shape (C, g, g).
        """
        mean, std = self._moments(rows, mirrored)
        return mean if std is None else mean + std * noise(tuple(mean.shape[1:]))

    def frozen(self, rows: Rows, mirrored: Tensor) -> Tensor:
        """Return fixed latents (N, C, g, g): the stored sample, or the same sample drawn from moments, up to rounding."""
        mean, std = self._moments(rows, mirrored)
        if std is None:
            return mean
        meta = self._shard.meta["posterior"]
        noise = frozen_noise(self._name, meta["part"], meta["seed"], rows, tuple(mean.shape[1:]))
        return mean + std * _chosen(noise, mirrored)

    def central(self, rows: Rows, mirrored: Tensor) -> Tensor:
        """Return the best estimate of latents (N, C, g, g): the posterior's mean, or the stored sample."""
        return self._moments(rows, mirrored)[0]

    def _moments(self, rows: Rows, mirrored: Tensor) -> tuple[Tensor, Tensor | None]:
        wanted = 2 * np.asarray(rows) + mirrored.numpy()
        mean, *std = (torch.from_numpy(array.take(wanted)).float() for array in self._arrays)
        return mean, std[0] if std else None


def _chosen(pairs: Tensor, mirrored: Tensor) -> Tensor:
    """Return the selected latents (N, C, g, g) of pairs (N, 2, C, g, g)."""
    return pairs[torch.arange(len(pairs)), mirrored.long()]
