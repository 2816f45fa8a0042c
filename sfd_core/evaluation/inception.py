"""The Inception network of FID, with torch-fidelity's standard weights, and the spatial feature that sFID needs."""

import io
import sys
import textwrap
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from sfd_core.evaluation.extractors import FEATURES, LOGITS, SPATIAL, Extractor, ExtractorIdentity, weights_folder
from sfd_core.host.errors import DataError, ResourceError
from sfd_core.host.paths import atomic_path, file_digest
from sfd_core.models.public.weights import read_public_checkpoint

WEIGHTS_URL: str = URL_INCEPTION_V3
WEIGHTS_FILE = WEIGHTS_URL.rsplit("/", 1)[-1]
STANDARD_DIGEST = WEIGHTS_FILE.removesuffix(".pth").rsplit("-", 1)[-1]
"""First digits of the sha256 of the file that every published FID rests on."""
SPATIAL_CHANNELS = 7
LONGEST_REASON = 300
"""Letters; torch lists every tensor that does not fit."""


class Inception(Extractor):
    """Inception v3 of 2015: pooled 2048-d features, 1008 logits without bias, and sFID's 7 x 17 x 17 = 2023 spatial values.

    The spatial feature is what ADM's evaluator takes (TensorFlow's `mixed_6/conv:0`, first 7 channels, after ReLU; Nash et al.
    2021): torch-fidelity's `Mixed_6d`, whose first channels come from that convolution, flattened in TensorFlow's order: row,
    column, channel. Weights: the file given, else
    torch-fidelity's, downloaded once to torch.hub's checkpoint folder.
    """

    layers: ClassVar[tuple[str, ...]] = (FEATURES, LOGITS, SPATIAL)

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        path = Path(weights) if weights else _fetch_weights()
        digest = _digest(path)
        try:
            # torch-fidelity unpickles what it is given; it is given tensors that were read without executing anything.
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], _safe_copy(path))
        except RuntimeError as error:
            reason = textwrap.shorten(str(error), LONGEST_REASON)
            raise DataError(f"{path} holds weights of another network ({reason}); fetch {WEIGHTS_URL}") from error
        standard = digest.startswith(STANDARD_DIGEST)
        self.identity = ExtractorIdentity(
            "inception" if standard else "inception_custom",
            digest,
            FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE,
            "torch-fidelity's bilinear of TensorFlow 1, (x - 128) / 128; spatial values by row, column, channel",
        )
        self._spatial = torch.empty(0)
        self.network.Mixed_6d.register_forward_hook(self._keep_spatial)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        pooled, logits = self.network(images)
        return {FEATURES: pooled, LOGITS: logits, SPATIAL: self._spatial}

    def _keep_spatial(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float()


def _fetch_weights() -> Path:
    path = weights_folder() / WEIGHTS_FILE
    if path.is_file():
        return path
    try:
        with atomic_path(path) as temporary:
            torch.hub.download_url_to_file(WEIGHTS_URL, str(temporary), STANDARD_DIGEST, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:
        raise ResourceError(
            f"extractor inception has no weights: {WEIGHTS_URL} cannot be fetched ({error}); fetch that file elsewhere and put "
            f"it at {path}, or name it in reference.inception_weights"
        ) from error
    return path


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise ResourceError(
            f"Inception weights {path} cannot be read ({error.strerror}); fetch {WEIGHTS_URL} and name it in "
            "reference.inception_weights, or set that to null to download it"
        ) from error


def _safe_copy(path: Path) -> io.BytesIO:
    """Return a torch file of the tensors in a file, safetensors or a torch file, read without executing anything in it."""
    copy = io.BytesIO()
    try:
        torch.save(read_public_checkpoint(path), copy)
    except DataError as error:
        raise DataError(f"{error}, from {WEIGHTS_URL}") from error
    copy.seek(0)
    return copy
