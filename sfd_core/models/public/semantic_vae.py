"""Published Semantic VAEs with the names of their public checkpoints."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sfd_core.host.errors import DataError
from sfd_core.models.public.weights import load_strictly, numbered
from sfd_core.models.vaes.semantic_vae import SemanticVAE


def semantic_vae_from(state: Mapping[str, Tensor], heads: int) -> SemanticVAE:
    """Return the Semantic VAE of the weights `state`; they do not contain the number of heads (public: 6).

    Raises `DataError` if these are no Semantic VAE weights.
    """
    try:
        width, in_channels = state["encoder.0.weight"].shape
        channels = state["decoder.0.weight"].shape[1]
    except (KeyError, ValueError) as error:
        raise DataError(
            f"these are no Semantic VAE weights: {error} is missing or has a wrong shape; give another file"
        ) from error
    if width % heads:
        raise DataError(
            f"{heads} heads do not divide the Semantic VAE's width {width}; use the number of heads of its training"
        )
    # The encoder is a linear layer, the blocks, a norm and a linear layer.
    depth = numbered(state, "encoder.") - 3
    with torch.device("meta"):
        model = SemanticVAE(in_channels, channels, width, depth, heads)
    load_strictly(model, state, "give the file of a Semantic VAE with plain pre-norm blocks")
    return model.eval()
