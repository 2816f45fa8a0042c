"""The one place that knows the composite latent: channel order (texture, then semantic) and normalisation statistics."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfd_core.host.errors import DataError, NumericsError
from sfd_core.host.paths import atomic_path


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of every channel (C,), float32."""

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.dim() != 1 or self.mean.shape != self.std.shape:
            raise DataError(
                f"means have shape {tuple(self.mean.shape)} and deviations {tuple(self.std.shape)}, but both need one value "
                "per channel; run the stage that writes the statistics again"
            )
        usable = torch.isfinite(self.mean) & torch.isfinite(self.std) & (self.std > 0)
        if not bool(usable.all()):
            raise NumericsError(
                f"latent channels {torch.nonzero(~usable).flatten().tolist()} are constant or not finite and cannot be "
                "normalised; train their VAE again, or with fewer channels"
            )

    def to(self, device: torch.device) -> Self:
        """Return the statistics on a device: where they lie elsewhere than the latents, each use copies and waits."""
        return type(self)(self.mean.to(device), self.std.to(device))

    def scaled(self, deviations: Tensor) -> Self:
        """Return the statistics that normalise to these `deviations` (C,), divided by their root mean square, instead of 1."""
        return type(self)(self.mean, self.std * deviations.square().mean().sqrt() / deviations)

    def normalise(self, z: Tensor) -> Tensor:
        """Return z (N, C, H, W) with mean 0 and deviation 1 in every channel, unless `scaled`."""
        return (z - _per_channel(self.mean, z)) / _per_channel(self.std, z)

    def denormalise(self, x: Tensor) -> Tensor:
        """Undo `normalise`."""
        return x * _per_channel(self.std, x) + _per_channel(self.mean, x)


class StreamingMoments:
    """Exact channel statistics in one pass, in float64 on the device of the values.

    Batches are merged with Chan's formula (Chan, Golub and LeVeque 1979), so their order hardly matters.
    """

    def __init__(self, channels: int) -> None:
        self.channels, self.count = channels, 0
        self._mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    @classmethod
    def of(cls, z: Tensor, std: Tensor | None = None) -> Self:
        """Return the moments of one batch; see `update`."""
        moments = cls(z.shape[1])
        moments.update(z, std)
        return moments

    def update(self, z: Tensor, std: Tensor | None = None) -> None:
        """Add a batch (N, C, ...); an empty one changes nothing.

        With `std` (same shape as `z`), values are samples with mean z and this deviation. The statistics are then exact for
        their distribution: variance = var(mean) + mean(std^2). Raises `NumericsError` for values that are not finite.
        """
        values = _by_channel(z)
        n = values.shape[1]
        if n == 0:
            return
        mean = values.mean(dim=1)
        squares = (values - mean[:, None]).square().sum(dim=1)
        if std is not None:
            squares += _by_channel(std).square().sum(dim=1)
        if not bool(torch.isfinite(squares).all()):
            raise NumericsError("latents hold NaN or infinity, so they have no statistics; check the stage that made them")
        self._add(n, mean.cpu(), squares.cpu())

    def merge(self, other: "StreamingMoments") -> None:
        """Add all values of `other`."""
        if other.count:
            self._add(other.count, other._mean, other._squares)

    def state(self) -> dict[str, Any]:
        """Return the state as plain values, which JSON keeps exactly."""
        return {"count": self.count, "mean": self._mean.tolist(), "squares": self._squares.tolist()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Undo `state`."""
        moments = cls(len(state["mean"]))
        moments._add(state["count"], *(torch.tensor(state[name], dtype=torch.float64) for name in ("mean", "squares")))
        return moments

    def statistics(self) -> ChannelStatistics:
        """Return mean and population standard deviation of all values. Raises `DataError` if there are none."""
        if self.count == 0:
            raise DataError("there are no latents to compute statistics of; check that the data set is not empty")
        return ChannelStatistics(self._mean.float(), (self._squares / self.count).sqrt().float())

    def _add(self, n: int, mean: Tensor, squares: Tensor) -> None:
        delta, total = mean - self._mean, self.count + n
        self._squares += squares + delta.square() * (self.count * n / total)
        self._mean += delta * (n / total)
        self.count = total


def save_statistics(path: Path, statistics: Mapping[str, ChannelStatistics]) -> None:
    """Write named statistics as safetensors `<name>_mean`, `<name>_std`, atomically."""
    tensors = {}
    for name, channels in statistics.items():
        tensors[f"{name}_mean"], tensors[f"{name}_std"] = channels.mean.contiguous(), channels.std.contiguous()
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def load_statistics(path: Path) -> dict[str, ChannelStatistics]:
    """Read the file of `save_statistics`. Raises `DataError` if it is missing or invalid."""
    try:
        tensors = load_file(path)
        names = [key.removesuffix("_mean") for key in tensors if key.endswith("_mean")]
        return {name: ChannelStatistics(tensors[f"{name}_mean"], tensors[f"{name}_std"]) for name in names}
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(f"{path} holds no latent statistics ({error}); run the stage that writes it again") from error


@dataclass(frozen=True)
class LatentStatistics:
    """Channel statistics of both latents over the training images; `semantic` is None for texture only."""

    texture: ChannelStatistics
    semantic: ChannelStatistics | None

    def save(self, path: Path) -> None:
        """Write both as `texture` and `semantic`; see `save_statistics`."""
        parts = {"texture": self.texture} | ({} if self.semantic is None else {"semantic": self.semantic})
        save_statistics(path, parts)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file of `save`. Raises `DataError` if it is missing or invalid."""
        parts = load_statistics(path)
        if "texture" not in parts:
            raise DataError(f"{path} has statistics of {sorted(parts)} but not of texture; run the stage that writes it again")
        return cls(parts["texture"], parts.get("semantic"))


@dataclass(frozen=True)
class Split:
    """The two parts of a composite, texture (N, n_texture, H, W) and semantic (N, n_semantic, H, W) or None."""

    texture: Tensor
    semantic: Tensor | None


@dataclass(frozen=True)
class Composite:
    """Joins latents into the normalised composite (N, n_texture + n_semantic, H, W) and splits it."""

    statistics: LatentStatistics

    @property
    def n_texture(self) -> int:
        """Texture channels."""
        return self.statistics.texture.mean.shape[0]

    @property
    def n_semantic(self) -> int:
        """Semantic channels; 0 for texture only."""
        return 0 if self.statistics.semantic is None else self.statistics.semantic.mean.shape[0]

    @property
    def channels(self) -> int:
        """All channels."""
        return self.n_texture + self.n_semantic

    def join(self, z_tex: Tensor, z_sem: Tensor | None = None) -> Tensor:
        """Return the normalised composite, float32, of raw latents on the same grid.

        Raises `DataError` if channels or grids do not match.
        """
        _require_channels(z_tex, self.n_texture, "texture")
        x_tex = self.statistics.texture.normalise(z_tex.float())
        if self.statistics.semantic is None:
            if z_sem is not None:
                raise DataError("got a semantic latent for a texture-only composite; omit it or use other statistics")
            return x_tex
        if z_sem is None:
            raise DataError(f"the composite has {self.n_semantic} semantic channels, but got no semantic latent; pass it")
        _require_channels(z_sem, self.n_semantic, "semantic")
        if z_sem.shape[2:] != z_tex.shape[2:]:
            raise DataError(
                f"the texture grid is {tuple(z_tex.shape[2:])}, but the semantic grid is {tuple(z_sem.shape[2:])}; "
                "both must be equal, so encode both at the same resolution"
            )
        return torch.cat([x_tex, self.statistics.semantic.normalise(z_sem.float())], dim=1)

    def split(self, x: Tensor) -> Split:
        """Return both parts of a composite, still normalised. Raises `DataError` for a wrong number of channels."""
        _require_channels(x, self.channels, "composite")
        return Split(x[:, : self.n_texture], x[:, self.n_texture :] if self.n_semantic else None)

    def denormalise_texture(self, x_tex: Tensor) -> Tensor:
        """Return the raw texture latent that the texture VAE decodes."""
        _require_channels(x_tex, self.n_texture, "texture")
        return self.statistics.texture.denormalise(x_tex)


def _by_channel(z: Tensor) -> Tensor:
    """Return z (N, C, ...) as float64 (C, values)."""
    return z.detach().double().transpose(0, 1).flatten(1)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like)[:, None, None]


def _require_channels(z: Tensor, channels: int, part: str) -> None:
    if z.dim() != 4 or z.shape[1] != channels:
        raise DataError(
            f"the {part} latent has shape {tuple(z.shape)} but its statistics have {channels} channels; "
            "use latents and statistics of the same encoding"
        )
