"""Measures the velocity errors of a denoiser of any order on held-out latents, over a grid of both local times."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfd_core.data.store.shards import ShardReader
from sfd_core.diffusion.error_field import ErrorField
from sfd_core.diffusion.loss import velocity_errors
from sfd_core.diffusion.path import sample_path
from sfd_core.diffusion.schedule import LocalTimes
from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import atomic_path
from sfd_core.host.progress import with_progress
from sfd_core.latents.held_out import HeldOutLatents
from sfd_core.models.denoisers.lightningdit import LightningDiT
from sfd_core.sampling.artifact import Denoiser

ARRAYS = ("times", "texture", "semantic")


@torch.no_grad()
def measure_error_field(
    denoiser: Denoiser, latents: ShardReader, points: int, images: int, batch_size: int, device: torch.device
) -> ErrorField:
    """Return the errors at `points` x `points` pairs of evenly spaced local times; shows progress.

    `latents` is the held-out shard of stage `encode`, of which `images` evenly spaced ones are taken, or all there are.
    Raises `ConfigError` for a denoiser that was not trained with independent times.
    """
    require_any_order(denoiser)
    labelled = bool(denoiser.classes)
    held_out = HeldOutLatents.read(latents, denoiser.composite, denoiser.variant.semantic, images, "error field", labelled)
    times = torch.linspace(0, 1, points, dtype=torch.float64)
    pairs = list(product(times.tolist(), times.tolist()))
    batches = list(held_out.batches(batch_size, device))

    def errors() -> Iterator[Tensor]:
        for at in pairs:
            yield torch.stack([_errors(denoiser, at, *batch) for batch in batches]).sum(dim=0) / len(held_out)

    found = torch.stack(list(with_progress(errors(), len(pairs), "error field", "pairs of times"))).reshape(points, points, 2)
    return ErrorField(times, found[..., 0], found[..., 1])


def write_field(path: Path, field: ErrorField, **more: NDArray[Any]) -> None:
    """Write a field as `times` (K,), `texture` and `semantic` (K, K), and what else is given, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **{name: getattr(field, name).numpy() for name in ARRAYS}, **more)


def read_field(path: Path) -> ErrorField:
    """Read the file of `write_field`."""
    with np.load(path, allow_pickle=False) as stored:
        return ErrorField(*(torch.from_numpy(stored[name]) for name in ARRAYS))


def require_any_order(denoiser: Denoiser, guide: Denoiser | None = None) -> None:
    """Raise `ConfigError` for a denoiser, or its guide, that was trained along one path."""
    for name, network in (("this denoiser", denoiser), ("its guide", guide)):
        if network is not None and (times := network.variant.times.kind) != "independent":
            raise ConfigError(
                f"{name} was trained with times of kind {times}, which know one path; choose one of kind independent"
            )


def _errors(denoiser: Denoiser, at: tuple[float, float], x0: Tensor, x1: Tensor, labels: Tensor) -> Tensor:
    """Return the squared errors of texture and of semantics (2,) at times `at`, summed over images, on the CPU."""
    model, n_texture = cast(LightningDiT, denoiser.model), denoiser.composite.n_texture
    times = LocalTimes(*(torch.full((len(x0),), t, device=x0.device) for t in at))
    path = sample_path(x0, x1, times, n_texture)
    predicted = model(path.x_t, times.t_tex, times.t_sem, labels).prediction
    return velocity_errors(predicted, path.velocity, n_texture).sum(dim=0).cpu()
