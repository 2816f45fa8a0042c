"""The repeated blocks of a transformer, which FSDP shards and torch.compile compiles."""

from typing import cast

from torch import nn


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a transformer; empty for other networks."""
    return list(cast(nn.ModuleList, getattr(model, "blocks", nn.ModuleList())))


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks of a transformer in place, on first use; one compilation per input shape serves all blocks."""
    for block in blocks_of(model):
        block.compile(dynamic=False)
