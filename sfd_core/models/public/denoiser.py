"""Published denoisers (LightningDiT, SFD, DiT) with the names of their public checkpoints."""

import math
from collections.abc import Mapping

from torch import Tensor

from sfd_core.experiment.sizes import ModelSize
from sfd_core.host.errors import DataError
from sfd_core.models.denoisers.lightningdit import LightningDiT, clocks_of
from sfd_core.models.public.weights import load_strictly, numbered

PROJECTOR_PREFIX = "repa_projector."


def without_projector(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` without REPA's projector, which only training needs."""
    return {name: value for name, value in state.items() if not name.startswith(PROJECTOR_PREFIX)}


def lightningdit_from(state: Mapping[str, Tensor]) -> LightningDiT:
    """Return the network of the weights `state`, ready for sampling; its sizes come from the shapes of the weights.

    REPA's projector is left out. Raises `DataError` if these are no LightningDiT weights.
    """
    state = without_projector(state)
    if "blocks.0.mlp.fc1.weight" in state:
        raise DataError("these are weights of a DiT (GELU perceptrons), not of a LightningDiT; give another file")
    try:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        head_width = len(state["blocks.0.attn.q_norm.weight"])
        side = math.isqrt(state["pos_embed"].shape[1])
        num_classes = len(state["y_embedder.embedding_table.weight"]) - 1
    except (KeyError, ValueError) as error:
        raise DataError(
            f"these are no LightningDiT weights: {error} is missing or has a wrong shape; give another file"
        ) from error
    size = ModelSize(depth=numbered(state, "blocks."), width=width, heads=width // head_width)
    model = LightningDiT(size, channels, side * patch, patch, num_classes, clocks_of(state))
    load_strictly(model, state, "give weights of a published LightningDiT or SFD")
    return model.eval()
