"""The repeated blocks of a transformer, which FSDP shards, torch.compile compiles and whose activations may be recomputed."""

import os
import shutil
import sysconfig
from pathlib import Path

from torch import nn

from sfd_core.host.errors import ConfigError


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a transformer, itself or inside `model`; empty for other networks."""
    lists = (getattr(module, "blocks", None) for module in model.modules())
    return [block for blocks in lists if isinstance(blocks, nn.ModuleList) for block in blocks]


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks of a transformer in place, on first use; one compilation per input shape serves all blocks.

    Raises `ConfigError` if this machine lacks what torch.compile calls.
    """
    compilers = (os.environ.get("CXX"), os.environ.get("CC"), "g++", "gcc", "clang")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not any(shutil.which(name) for name in compilers if name) or not headers.is_file():
        raise ConfigError(
            f"engine.compile is true, which needs a C++ compiler and {headers}; install both, for example with "
            "`apt install g++ python3-dev`, or set engine.compile to false"
        )
    for block in blocks_of(model):
        block.compile(dynamic=False)


def recompute_activations(model: nn.Module) -> None:
    """Let a transformer, itself or inside `model`, compute its activations again in the backward pass."""
    for module in model.modules():
        if hasattr(module, "activation_checkpointing"):
            module.activation_checkpointing = True  # type: ignore[assignment]
