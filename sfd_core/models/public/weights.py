"""Reads published weights files without executing their code, and loads them strictly.

A file is a flat set of tensors (safetensors), or a torch file with a dict of tensors or a dict that holds `ema`, `model`,
`model_state_dict` or `state_dict`. Only tensors and plain values are unpickled.
"""

import argparse
import pickle
import re
import string
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sfd_core.host.errors import DataError

WEIGHT_KEYS = ("ema", "model", "model_state_dict", "state_dict")
"""Keys of the weights in torch files; the first existing one is used, so EMA weights are preferred."""

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes of DistributedDataParallel and torch.compile."""

TRAINER_PACKAGES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")
"""Trainers that store their own objects next to the weights, such as the state of callbacks."""

LISTED_KEYS = 8
HEAD_BYTES, SHOWN_BYTES, LONGEST_REASON = 512, 40, 200
TEXT = frozenset(string.printable.encode())


class _Ignored:
    """Placeholder for a trainer's object in a file; ignores all its data."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def read_public_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the weights of a published file by name, on the CPU; EMA weights if present, without prefixes of wrappers.

    Raises `DataError` if the file is missing, damaged, or holds no weights, more than tensors and plain values, or values that
    are not finite.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; download the checkpoint or correct the path")
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    found = next((loaded[key] for key in WEIGHT_KEYS if isinstance(loaded.get(key), Mapping) and loaded[key]), loaded)
    weights = {_strip_prefixes(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not weights or len(weights) < len(found):
        kept = ", ".join(str(key) for key in list(loaded)[:LISTED_KEYS])
        raise DataError(f"{path} is no set of weights: it holds {kept}; expected tensors, or one of {', '.join(WEIGHT_KEYS)}")
    broken = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise DataError(f"{path} holds NaN or infinity in {_join_names(broken)}; give a checkpoint of a healthy training")
    return weights


def read_torch_file(path: Path) -> dict[str, Any]:
    """Return the dict of tensors and plain values in a torch file, on the CPU.

    Objects of known trainers are ignored. Raises `DataError` if the file is damaged, no dict, or holds other objects.
    """
    _require_no_text(path)
    try:
        # Training scripts store their command line next to the weights, as a Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace, *_trainer_objects(path)]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # what torch says beside the name is advice to trust the file
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise DataError(
            f"{path} holds more than tensors and plain values{f' ({named[1]})' if named else ''}, or is damaged, and is not "
            "unpickled; ask its author for a safetensors file"
        ) from error
    except Exception as error:
        raise DataError(f"{path} is no complete torch file ({_in_words(error)}); download it again") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{path} holds a {type(loaded).__name__} instead of a dict of weights; give another file")
    return loaded


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], remedy: str) -> None:
    """Load `state` into `model`; all names and shapes must match. A model on the meta device takes over the tensors.

    Raises `DataError` with missing, unexpected and misshapen weights and `remedy`, and leaves `model` unchanged.
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
    details = "; ".join(f"{kind}: {_join_names(names)}" for kind, names in problems.items() if names)
    if details:
        raise DataError(f"the checkpoint does not match this {type(model).__name__} ({details}); {remedy}")
    model.load_state_dict(state, assign=any(value.is_meta for value in own.values()))


def numbered(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of numbered modules after `prefix`: 12 for `blocks.` if `blocks.11.` is the last."""
    numbers = (name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix))
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def _trainer_objects(path: Path) -> list[tuple[type[_Ignored], str]]:
    """Return placeholders for all classes of known trainers in the file, with their names."""
    if not zipfile.is_zipfile(path):
        return []
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    # One class per name: the unpickler checks instances by class.
    return [(type("Ignored", (_Ignored,), {}), name) for name in unsafe if name.startswith(TRAINER_PACKAGES)]


def _read_safetensors(path: Path) -> dict[str, Any]:
    _require_no_text(path)
    try:
        return dict(load_file(path))
    except Exception as error:
        raise DataError(f"{path} is no complete safetensors file ({_in_words(error)}); download it again") from error


def _require_no_text(path: Path) -> None:
    """Raise `DataError` for what downloads leave in place of weights: a page, an answer in JSON, a pointer of Git LFS."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is a pointer of Git LFS instead of the file; fetch it with `git lfs pull`")
    if not head:
        raise DataError(f"{path} is empty; download it again")
    if all(byte in TEXT for byte in head):
        start = head[:SHOWN_BYTES].decode().split("\n", 1)[0]
        raise DataError(f"{path} is text instead of weights, beginning with {start!r}; download it again")


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:LONGEST_REASON]}" if str(error) else type(error).__name__


def _strip_prefixes(name: str) -> str:
    while name.startswith(WRAPPER_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _join_names(names: list[str]) -> str:
    more = len(names) - LISTED_KEYS
    return ", ".join(names[:LISTED_KEYS]) + (f" and {more} more" if more > 0 else "")
