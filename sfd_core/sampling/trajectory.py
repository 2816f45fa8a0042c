"""The denoising process as pictures: the predicted image at every point of global time."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfd_core.experiment.params import SamplerParams
from sfd_core.latents.composite import Split
from sfd_core.sampling.pipeline import Pipeline

IMAGES = 6
COLOURS = 3


def record_trajectory(pipeline: Pipeline, sampler: SamplerParams, semantics: Tensor | None) -> Mapping[str, NDArray[Any]]:
    """Return u (T,), textures uint8 (T, N, 3, R, R) and labels (N,) of the first images of the sampler's seed.

    For composites, also return semantics uint8 (T, N, 3, g, g). Texture is the decoded prediction of the final image. Semantics
    is the current semantic latent: its first three principal components over `semantics` (M, C, g, g, normalised latents of
    training images) as red, green and blue.
    """
    labels = torch.arange(IMAGES) % max(1, len(pipeline.denoiser.classes))
    times: list[float] = []
    textures: list[Tensor] = []
    states: list[Tensor] = []

    def observe(u: float, x: Tensor, predicted: Tensor) -> None:
        finished, state = pipeline.denoiser.composite.split(predicted), pipeline.denoiser.composite.split(x)
        times.append(u)
        textures.append(pipeline.decode(Split(finished.texture, None)))
        if state.semantic is not None:
            states.append(state.semantic.cpu())

    # Euler for all: the scrubber of the report needs a fixed grid of points.
    fixed = sampler.model_copy(update={"solver": "euler"})
    pipeline.solve(list(range(IMAGES)), labels, fixed, observe=observe)
    found: dict[str, NDArray[Any]] = {"u": np.array(times), "textures": torch.stack(textures).numpy(), "labels": labels.numpy()}
    if semantics is not None:
        found["semantics"] = _colours(torch.stack(states), semantics)
    return found


def _colours(states: Tensor, reference: Tensor) -> NDArray[np.uint8]:
    """Map latents (T, N, C, g, g) to uint8 (T, N, 3, g, g); two standard deviations of the reference fill the range."""
    flat = reference.transpose(0, 1).flatten(1)
    mean = flat.mean(1)
    variances, vectors = torch.linalg.eigh(torch.cov(flat))
    count = min(COLOURS, len(mean))
    basis = vectors[:, -count:].flip(1) / variances[-count:].flip(0).clamp(min=1e-12).sqrt()
    coordinates = torch.einsum("ck,tnchw->tnkhw", basis, states - mean[:, None, None])
    coordinates = torch.nn.functional.pad(coordinates, (0, 0, 0, 0, 0, COLOURS - count))
    return ((coordinates / 4 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
