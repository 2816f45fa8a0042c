"""The repeated blocks of a transformer, which FSDP shards, torch.compile compiles and whose activations may be recomputed."""

from torch import nn


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a transformer, itself or inside `model`; empty for other networks."""
    lists = (getattr(module, "blocks", None) for module in model.modules())
    return [block for blocks in lists if isinstance(blocks, nn.ModuleList) for block in blocks]


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks of a transformer in place, on first use; one compilation per input shape serves all blocks."""
    for block in blocks_of(model):
        block.compile(dynamic=False)


def recompute_activations(model: nn.Module) -> None:
    """Let a transformer, itself or inside `model`, compute its activations again in the backward pass."""
    for module in model.modules():
        if hasattr(module, "activation_checkpointing"):
            module.activation_checkpointing = True  # type: ignore[assignment]
