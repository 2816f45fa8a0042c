"""Interface of all texture VAEs, trained here or published, and their format on disk.

Folder: `model.safetensors`, `model.json` (kind of network, its shape, identity).
Shapes: N images, R pixels a side, f pixels per latent position, g = R/f, C latent channels.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sfd_core.host.errors import DataError
from sfd_core.host.paths import file_digest, write_json
from sfd_core.models.vaes.posterior import Posterior

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "model.json"
PIXELS_AT_ONCE = 16 * 256**2
"""Pixels per pass of a published network. f16d32 needs 0.18 GB per 256x256 image in float32 on a CPU, so about 3 GB."""


@dataclass(frozen=True)
class LatentShape:
    """Channels C of the texture latent, and pixels f per latent position along one side."""

    channels: int
    downsampling: int


class ImageVAE(nn.Module, ABC):
    """Pixels to the texture latent and back."""

    kind: ClassVar[str]
    """Kind of network in `model.json`."""
    shape: LatentShape

    @abstractmethod
    def encode(self, images: Tensor) -> Posterior:
        """Images (N, 3, R, R) in [-1, 1] -> posterior of latents (N, C, g, g)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Latents (N, C, g, g) -> images (N, 3, R, R), about [-1, 1], not clipped."""

    @abstractmethod
    def description(self) -> Mapping[str, Any]:
        """Return plain values from which the network can be built."""

    @abstractmethod
    def origin(self) -> Mapping[str, str]:
        """Return its name and, for a published VAE, the hash of its file."""

    def save(self, folder: Path) -> None:
        """Write weights, description and identity into `folder`."""
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / WEIGHTS_FILE)
        identity = {**self.origin(), "weights": file_digest(folder / WEIGHTS_FILE)}
        write_json(folder / CONFIG_FILE, {"kind": self.kind, "network": dict(self.description()), "identity": identity})


class PublishedVAE(ImageVAE):
    """A network of diffusers with the weights of a published file."""

    def __init__(self, network: Any, shape: LatentShape, origin: Mapping[str, str]) -> None:
        super().__init__()
        self.network, self.shape = network, shape
        self._origin = {key: origin[key] for key in ("name", "source")}

    @classmethod
    @abstractmethod
    def from_description(cls, description: Mapping[str, Any], origin: Mapping[str, str]) -> Self:
        """Build the network of `description`, ready for loading weights."""

    def origin(self) -> Mapping[str, str]:
        """Return name and `source`, the hash of the published file."""
        return self._origin


@dataclass(frozen=True)
class VAEManifest:
    """What `model.json` holds."""

    kind: str
    network: Mapping[str, Any]
    identity: Mapping[str, str]
    codes: Sequence[str] = ()
    """Hashes of the codes that trained it, where it was more than one."""

    @classmethod
    def read(cls, folder: Path) -> "VAEManifest":
        """Read the manifest of the texture VAE in `folder` and check the hash of its weights.

        Raises `DataError` if a file is missing, damaged or does not match its hash.
        """
        try:
            manifest = cls(**json.loads((folder / CONFIG_FILE).read_text()))
            digest = file_digest(folder / WEIGHTS_FILE)
        except FileNotFoundError as error:
            raise DataError(
                f"{folder} holds no texture VAE ({error.filename} is missing); run `dvc repro texture_vae`"
            ) from error
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{folder / CONFIG_FILE} describes no texture VAE ({error}); run `dvc repro texture_vae`"
            ) from error
        if digest != manifest.identity.get("weights"):
            raise DataError(f"{folder / WEIGHTS_FILE} does not match its recorded hash; restore it with `dvc checkout`")
        return manifest


def in_chunks(function: Callable[[Tensor], Tensor], x: Tensor, pixels: int) -> Tensor:
    """Apply `function` to a few rows of `x` at a time, each of `pixels`, so that memory does not depend on the batch size."""
    return torch.cat([function(part) for part in torch.split(x, max(1, PIXELS_AT_ONCE // pixels))])
