"""The networks whose features are compared: images in, layers out.

All take uint8 images (N, 3, H, W) of any size and give one feature vector an image (Inception also logits and the spatial
feature of sFID). Each carries an identity of weights and preprocessing, whose `key` names it wherever features are cached.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfd_core.experiment.params import EncoderParams, fingerprint
from sfd_core.host.errors import DataError, ResourceError
from sfd_core.models.encoders.encoder import efficientnet_lite, fold_batch_norms, load_encoder, weights_digest

FEATURES, LOGITS, SPATIAL = "features", "logits", "spatial"
"""Layers: the vector of the main distances, Inception's class logits without bias, and the 2023 values of sFID."""


@dataclass(frozen=True)
class ExtractorIdentity:
    """What features depend on beside the image."""

    name: str
    """As in `reference.extractors`; `inception_custom` for Inception with other than the standard weights."""
    weights: str
    """sha256."""
    input_size: int
    preprocessing: str

    @property
    def key(self) -> str:
        """Name for caches: it changes with weights and preprocessing."""
        return f"{self.name}-{fingerprint(asdict(self))}"


class Extractor(nn.Module):
    """Base of the extractors; a subclass sets `identity`, and its `forward` returns all `layers` of a batch."""

    layers: ClassVar[tuple[str, ...]] = (FEATURES,)
    identity: ExtractorIdentity

    def extract(self, images: Tensor, batch_size: int) -> dict[str, Tensor]:
        """Return every layer, float32 (N, D) on the CPU, of uint8 images (N, 3, H, W) on any device.

        The network sees `batch_size` images at a time. Raises `DataError` for anything but uint8 RGB.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise DataError(f"images are {images.dtype} {tuple(images.shape)}, but an extractor takes uint8 (N, 3, H, W)")
        device = next(self.parameters()).device
        parts: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        for batch in torch.split(images, batch_size):
            with torch.inference_mode():
                found = self(batch.to(device))
            for name, values in parts.items():
                values.append(found[name].float().cpu())
        # joined outside inference mode, so that what is kept is an ordinary tensor
        return {name: torch.cat(values) for name, values in parts.items()}


class EfficientNetLite(Extractor):
    """Pooled 1280-d features of an EfficientNet-Lite with ImageNet weights from an installed package.

    Images are resized to 96 pixels instead of the networks' native 224 and 260: enough for the small images these networks
    evaluate, and several times as fast.
    """

    architecture: ClassVar[str]
    input_size: ClassVar[int] = 96

    def __init__(self) -> None:
        super().__init__()
        network = efficientnet_lite(self.architecture)
        preprocessing = "bicubic antialias, clamped, (x / 255 - 0.5) / 0.5"
        self.identity = ExtractorIdentity(
            self.architecture.removeprefix("tf_"), weights_digest(network), self.input_size, preprocessing
        )
        fold_batch_norms(network)
        self.network = network.to(memory_format=torch.channels_last).eval().requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        pixels = resize(images, self.input_size).div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)
        return {FEATURES: self.network.forward_head(self.network.forward_features(pixels), pre_logits=True).float()}


class EfficientNetLite2(EfficientNetLite):
    """The main extractor of the embedded preset: no other stage uses it."""

    architecture = "tf_efficientnet_lite2"


class EfficientNetLite0(EfficientNetLite):
    """The extractor that is also the embedded preset's semantic encoder, and may therefore favour composites."""

    architecture = "tf_efficientnet_lite0"


class DinoV2(Extractor):
    """Class token (1024-d) of DINOv2 ViT-L/14 at 224 pixels, which Stein et al. 2023 (arXiv 2306.04675) recommend.

    As in their dgm-eval with clean resizing: every channel bicubic with antialiasing in floating point, class token after the
    last norm, and positions resampled as torch.hub's model does it, which timm does otherwise. Weights: `<model>.safetensors`
    in torch.hub's checkpoint folder, else the Hugging Face hub.
    """

    architecture: ClassVar[str] = "vit_large_patch14_dinov2.lvd142m"
    native_size: ClassVar[int] = 518
    """Side in pixels of the weights' position embedding."""
    input_size: ClassVar[int] = 224
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        place = weights_folder() / f"{self.architecture}.safetensors"
        weights = str(place) if place.is_file() else "hub"
        grid = self.native_size // 14
        wanted = EncoderParams(
            encoder=self.architecture, weights=weights, input_size=self.native_size, grid=grid, precision="float32"
        )
        try:
            encoder = load_encoder(wanted)
        except ResourceError as error:
            raise ResourceError(
                f"extractor dinov2 has no weights ({error.__cause__ or error}); connect to the network, or fetch "
                f"https://huggingface.co/timm/{self.architecture}/resolve/main/model.safetensors and put it at {place}"
            ) from error
        preprocessing = "bicubic antialias, clamped, ImageNet mean and deviation, positions as in torch.hub (Stein et al. 2023)"
        self.identity = ExtractorIdentity("dinov2", str(encoder.identity["weights"]), self.input_size, preprocessing)
        self.network = encoder.model
        positions = hub_positions(self.network.pos_embed.detach(), self.input_size // 14)
        self.network.set_input_size(img_size=self.input_size)
        self.network.pos_embed = torch.nn.Parameter(positions, requires_grad=False)
        self.register_buffer("mean", encoder.get_buffer("mean") * 255, persistent=False)
        self.register_buffer("std", encoder.get_buffer("std") * 255, persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        pixels = resize(images, self.input_size).sub_(self.mean).div_(self.std)
        return {FEATURES: self.network(pixels).float()}


def hub_positions(positions: Tensor, grid: int) -> Tensor:
    """Resample a position embedding (1, 1 + M * M, D), class token first, to (1, 1 + grid * grid, D).

    The rule of facebookresearch/dinov2 (`interpolate_pos_encoding`): bicubic without antialiasing, by the scale
    (grid + 0.1) / M rather than to a size, which shifts the sampling points a little.
    """
    side = math.isqrt(positions.shape[1] - 1)
    if side == grid:
        return positions
    patches = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (grid + 0.1) / side
    resampled = F.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1], resampled.flatten(2).transpose(1, 2)], dim=1)


def resize(images: Tensor, size: int) -> Tensor:
    """Return float32 images (N, 3, size, size) in [0, 255]; values that bicubic filters overshoot are clamped."""
    pixels = images.float()
    if pixels.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).clamp_(0, 255)


def weights_folder() -> Path:
    """Return where torch.hub, hence torch-fidelity, keeps downloaded weights (TORCH_HOME moves it)."""
    return Path(torch.hub.get_dir()) / "checkpoints"
