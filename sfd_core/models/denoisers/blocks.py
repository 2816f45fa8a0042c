"""The blocks that a transformer repeats: what FSDP cuts in shards and torch.compile compiles."""

from typing import cast

from torch import nn


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that a transformer repeats."""
    return list(cast(nn.ModuleList, getattr(model, "blocks", nn.ModuleList())))


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks of a transformer in place, at their first use: one compilation for all, another for each new shape."""
    for block in blocks_of(model):
        block.compile(dynamic=False)
