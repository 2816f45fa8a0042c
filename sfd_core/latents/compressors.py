"""The two compressors of patch tokens on disk, the Semantic VAE and PCA (for ReDi), with the statistics of their input."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfd_core.experiment.params import SemanticVAEParams
from sfd_core.host.errors import DataError
from sfd_core.host.paths import file_digest, write_json
from sfd_core.latents.composite import ChannelStatistics
from sfd_core.models.vaes.pca import PCA
from sfd_core.models.vaes.semantic_vae import SemanticVAE

WEIGHTS_FILE, PCA_FILE, CONFIG_FILE = "model.safetensors", "pca.safetensors", "model.json"


@dataclass(frozen=True)
class SemanticCompressors:
    """Both compressors, and the channel statistics that standardise their input tokens."""

    vae: SemanticVAE
    pca: PCA
    statistics: ChannelStatistics

    def to(self, device: torch.device) -> Self:
        """Return the same compressors on `device`."""
        return type(self)(self.vae.to(device), self.pca.to(device), self.statistics.to(device))

    def standardised(self, tokens: Tensor) -> Tensor:
        """Return tokens (N, C, g, g) standardised as input of both compressors, on their device."""
        return self.statistics.normalise(tokens.to(self.statistics.mean.device))

    def save(self, folder: Path, params: SemanticVAEParams, encoder: Mapping[str, Any]) -> None:
        """Write weights, shapes and identity (name, hashes, the encoder's own identity) into `folder`."""
        save_file({name: value.contiguous() for name, value in self.vae.state_dict().items()}, folder / WEIGHTS_FILE)
        pca = {"mean": self.pca.mean, "components": self.pca.components}
        tokens = {"token_mean": self.statistics.mean, "token_std": self.statistics.std}
        save_file({name: value.contiguous() for name, value in (pca | tokens).items()}, folder / PCA_FILE)
        shape = {"in_channels": len(self.statistics.mean), **params.model_dump(include={"channels", "width", "depth", "heads"})}
        identity = {
            "name": f"semantic-vae-{params.channels}",
            "weights": file_digest(folder / WEIGHTS_FILE),
            "pca": file_digest(folder / PCA_FILE),
            "encoder": dict(encoder),
        }
        if params.weights is not None:
            identity["source"] = file_digest(Path(params.weights))
        write_json(folder / CONFIG_FILE, {"shape": shape, "identity": identity})

    @classmethod
    def load(cls, folder: Path) -> tuple[Self, dict[str, Any]]:
        """Read the files of `save`; returns the frozen compressors and their identity.

        Raises `DataError` if a file is missing or does not match its hash.
        """
        try:
            config = json.loads((folder / CONFIG_FILE).read_text())
            digests = {"weights": file_digest(folder / WEIGHTS_FILE), "pca": file_digest(folder / PCA_FILE)}
        except FileNotFoundError as error:
            raise DataError(
                f"{folder} holds no Semantic VAE ({error.filename} is missing); run `dvc repro semantic_vae`"
            ) from error
        for name, file in (("weights", WEIGHTS_FILE), ("pca", PCA_FILE)):
            if config["identity"][name] != digests[name]:
                raise DataError(f"{folder / file} does not match its recorded hash; restore it with `dvc checkout`")
        vae = SemanticVAE(**config["shape"])
        vae.load_state_dict(load_file(folder / WEIGHTS_FILE))
        tensors = load_file(folder / PCA_FILE)
        pca = PCA(tensors["mean"], tensors["components"])
        statistics = ChannelStatistics(tensors["token_mean"], tensors["token_std"])
        return cls(vae.eval().requires_grad_(False), pca, statistics), config["identity"]
