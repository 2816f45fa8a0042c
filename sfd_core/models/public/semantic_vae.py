"""Semantic VAEs that others published, in the names of the public checkpoints."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sfd_core.host.errors import DataError
from sfd_core.models.public.weights import load_strictly, numbered
from sfd_core.models.vaes.semantic_vae import SemanticVAE


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
    depth = numbered(state, "encoder.") - 3
    with torch.device("meta"):
        model = SemanticVAE(in_channels, channels, width, depth, heads)
    load_strictly(model, state, "name a file of a Semantic VAE of plain pre-norm blocks")
    return model.eval()
