"""Weights that others published: LightningDiT, SFD and DiT denoisers, and Semantic VAEs.

A file is a flat set of tensors (safetensors) or a torch file whose dict holds `ema`, `model` or `model_state_dict`.
Nothing is unpickled but tensors and plain values.
"""

import argparse
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sfd_core.errors import DataError
from sfd_core.models.lightningdit import LightningDiT
from sfd_core.models.semantic_vae import SemanticVAE
from sfd_core.sizes import ModelSize

WEIGHT_KEYS = ("ema", "model", "model_state_dict", "state_dict")
"""Where torch files keep their weights; the first that exists wins, so that averaged weights are preferred."""

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""

PROJECTOR_PREFIX = "repa_projector."
LISTED_KEYS = 8


def read_public_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the weights of a published file by name on the CPU, averaged ones if there are any, without wrappers' prefixes.

    Raises `DataError` if the file is missing, damaged, or holds no weights or more than tensors and plain values.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; download the checkpoint or mend the path")
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    found = next((loaded[key] for key in WEIGHT_KEYS if isinstance(loaded.get(key), Mapping) and loaded[key]), loaded)
    weights = {_unwrapped(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not weights or len(weights) < len(found):
        kept = ", ".join(str(key) for key in list(loaded)[:LISTED_KEYS])
        raise DataError(f"{path} is no set of weights: it holds {kept}; expected tensors, or one of {', '.join(WEIGHT_KEYS)}")
    return weights


def without_projector(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` without REPA's projector, which only training needs."""
    return {name: value for name, value in state.items() if not name.startswith(PROJECTOR_PREFIX)}


def load_denoiser_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into `model`; every name and every shape must match.

    Raises `DataError` that lists missing, unexpected and misshapen weights; then `model` is unchanged.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = {"missing": missing, "unexpected": extra, "misshapen": misshapen}
    details = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
    if details:
        raise DataError(f"the checkpoint is of another network than this {type(model).__name__} ({details}); {_remedy(extra)}")
    model.load_state_dict(state)


def lightningdit_from(state: Mapping[str, Tensor]) -> LightningDiT:
    """Return the network whose weights `state` holds, ready to sample: its sizes are read off the weights' shapes.

    REPA's projector is left out. Raises `DataError` if these are no LightningDiT weights.
    """
    state = without_projector(state)
    try:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        head_width = len(state["blocks.0.attn.q_norm.weight"])
        side = math.isqrt(state["pos_embed"].shape[1])
        num_classes = len(state["y_embedder.embedding_table.weight"]) - 1
    except (KeyError, ValueError) as error:
        raise DataError(f"these are no LightningDiT weights: {error} is missing or misshapen; name another file") from error
    size = ModelSize(depth=_count(state, "blocks."), width=width, heads=width // head_width)
    two_times = any(name.startswith("t_embedder_sem.") for name in state)
    model = LightningDiT(size, channels, side * patch, patch, num_classes, embedders=2 if two_times else 1)
    load_denoiser_weights(model, state)
    return model.eval()


def semantic_vae_from(state: Mapping[str, Tensor], heads: int) -> SemanticVAE:
    """Return the Semantic VAE whose weights `state` holds; the number of heads (public: 6) is not in the weights.

    Raises `DataError` if these are no Semantic VAE weights.
    """
    try:
        width, in_channels = state["encoder.0.weight"].shape
        channels = state["decoder.0.weight"].shape[1]
    except (KeyError, ValueError) as error:
        raise DataError(f"these are no Semantic VAE weights: {error} is missing or misshapen; name another file") from error
    if width % heads:
        raise DataError(f"{heads} heads do not divide the Semantic VAE's width {width}; name the number it was trained with")
    # Besides the blocks, the encoder is a linear layer before them, and a norm and a linear layer after them.
    depth = _count(state, "encoder.") - 3
    model = SemanticVAE(in_channels, channels, width, depth, heads)
    load_denoiser_weights(model, state)
    return model.eval()


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise DataError(f"{path} is no complete safetensors file ({error}); download it again") from error


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        # Training scripts keep their command line beside the weights; a Namespace is a bag of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} holds more than tensors and plain values, or is damaged, and is not unpickled; "
            f"ask its author for a safetensors file ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise DataError(f"{path} is no complete torch file ({error}); download it again") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{path} holds a {type(loaded).__name__} where a dict of weights was expected; name another file")
    return loaded


def _unwrapped(name: str) -> str:
    while name.startswith(WRAPPER_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max((int(name.split(".")[1]) for name in state if name.startswith(prefix)), default=-1)


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED_KEYS
    return ", ".join(names[:LISTED_KEYS]) + (f" and {more} more" if more > 0 else "")


def _remedy(extra: list[str]) -> str:
    if extra and all(name.startswith(PROJECTOR_PREFIX) for name in extra):
        return "REPA's projector can be dropped by without_projector"
    return "build the network with the checkpoint's size, channels, patch, classes and number of time embedders"
