"""Files of weights that others published, read without running anything, and strict loading.

A file is a flat set of tensors (safetensors) or a torch file whose dict holds `ema`, `model`, `model_state_dict` or
`state_dict`. Nothing is unpickled but tensors and plain values.
"""

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sfd_core.host.errors import DataError

WEIGHT_KEYS = ("ema", "model", "model_state_dict", "state_dict")
"""Where torch files keep their weights; the first that exists wins, so that averaged weights are preferred."""

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""

TRAINER_PACKAGES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")
"""Trainers that keep objects of their own beside the weights, such as the state of callbacks."""

LISTED_KEYS = 8


class _Ignored:
    """Stands for a trainer's object in a file: takes whatever the file gives it and does nothing."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def read_public_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the weights of a published file by name on the CPU, averaged ones if there are any, without wrappers' prefixes.

    Raises `DataError` if the file is missing, damaged, or holds no weights or more than tensors and plain values.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; download the checkpoint or mend the path")
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    found = next((loaded[key] for key in WEIGHT_KEYS if isinstance(loaded.get(key), Mapping) and loaded[key]), loaded)
    weights = {_unwrapped(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not weights or len(weights) < len(found):
        kept = ", ".join(str(key) for key in list(loaded)[:LISTED_KEYS])
        raise DataError(f"{path} is no set of weights: it holds {kept}; expected tensors, or one of {', '.join(WEIGHT_KEYS)}")
    return weights


def read_torch_file(path: Path) -> dict[str, Any]:
    """Return the dict of tensors and plain values that a torch file holds, on the CPU.

    Objects of known trainers are left out. Raises `DataError` if the file is damaged, no dict, or holds other objects.
    """
    try:
        # Training scripts keep their command line beside the weights; a Namespace is a bag of plain values.
        with torch.serialization.safe_globals([argparse.Namespace, *_trainer_objects(path)]):
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


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], remedy: str) -> None:
    """Make `state` the weights of `model`; every name and every shape must match. A model on the meta device takes them over.

    Raises `DataError` that lists missing, unexpected and misshapen weights and ends in `remedy`; then `model` is unchanged.
    """
    own = model.state_dict()
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "misshapen": misshapen,
    }
    details = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
    if details:
        raise DataError(f"the checkpoint is of another network than this {type(model).__name__} ({details}); {remedy}")
    model.load_state_dict(state, assign=any(value.is_meta for value in own.values()))


def numbered(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many numbered modules follow `prefix`, such as 12 for `blocks.` where `blocks.11.` is the last."""
    numbers = (name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix))
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def _trainer_objects(path: Path) -> list[tuple[type[_Ignored], str]]:
    """Return a stand-in, under its own name, for every trainer's class that the file refers to."""
    if not zipfile.is_zipfile(path):
        return []
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    # One class each: the unpickler accepts instances by their class.
    return [(type("Ignored", (_Ignored,), {}), name) for name in unsafe if name.startswith(TRAINER_PACKAGES)]


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise DataError(f"{path} is no complete safetensors file ({error}); download it again") from error


def _unwrapped(name: str) -> str:
    while name.startswith(WRAPPER_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED_KEYS
    return ", ".join(names[:LISTED_KEYS]) + (f" and {more} more" if more > 0 else "")
