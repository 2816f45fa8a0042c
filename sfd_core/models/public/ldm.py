"""Converts checkpoints of latent diffusion's AutoencoderKL (Rombach et al., arXiv 2112.10752) for diffusers.

Both have the same network, but other names. The decoder's levels are counted from opposite ends (LDM's `up.0` is the finest,
diffusers' `up_blocks.0` the coarsest), and LDM stores the linear layers of attention as 1x1 convolutions.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sfd_core.host.errors import DataError
from sfd_core.models.public.weights import numbered

NETWORK_PREFIXES = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
TRAINING_PREFIXES = ("loss.", "model_ema.", "foundation_model.", "linear_proj.")
"""Used only in training: discriminator, perceptual loss, and VA-VAE's foundation model and projection."""
FIRST_LAYER = "encoder.conv_in.weight"
NORM_GROUPS = 32

LEVEL = re.compile(r"(encoder|decoder)\.(?:down|up)\.(\d+)\.(block|attn|downsample|upsample)\.(.+)")
MIDDLE = re.compile(r"(encoder|decoder)\.mid\.(block|attn)_(\d)\.(.+)")
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def network_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the VAE in a checkpoint, without the prefix of a larger model and without training-only weights.

    Raises `DataError` if the checkpoint holds no such VAE or unknown weights.
    """
    first = next((name for name in state if name.endswith(FIRST_LAYER)), None)
    if first is None:
        shown = ", ".join(list(state)[:4])
        raise DataError(f"these are no weights of a latent-diffusion VAE: {FIRST_LAYER} is missing; found {shown}, ...")
    prefix = first.removesuffix(FIRST_LAYER)
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    own = {name: value for name, value in own.items() if not name.startswith(TRAINING_PREFIXES)}
    if any(name.startswith("encoder.down_blocks.") for name in own):
        raise DataError("these weights have the names of diffusers, not of latent diffusion; set texture_vae.kind to diffusers")
    unknown = [name for name in own if not name.startswith(NETWORK_PREFIXES)]
    if unknown:
        raise DataError(
            f"the checkpoint holds weights that no latent-diffusion VAE has: {', '.join(unknown[:8])}; give another file"
        )
    return own


def configuration(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of diffusers' AutoencoderKL for weights with LDM's names.

    Raises `DataError` for other networks.
    """
    levels = numbered(state, "encoder.down.")
    try:
        widths = [len(state[f"encoder.down.{level}.block.0.conv1.weight"]) for level in range(max(levels, 1))]
        latent_channels = state["decoder.conv_in.weight"].shape[1]
        ends = state["encoder.conv_in.weight"].shape[1], len(state["decoder.conv_out.weight"])
        moments = len(state["encoder.conv_out.weight"])
    except KeyError as error:
        raise DataError(
            f"the checkpoint is an incomplete latent-diffusion VAE: {error} is missing; download it again"
        ) from error
    if moments != 2 * latent_channels:
        raise DataError(
            f"the encoder has {moments} output channels and the decoder {latent_channels} input channels, but a KL VAE has "
            "mean and log-variance for each; give the checkpoint of a KL VAE, not of a VQ VAE"
        )
    coarsest_first = range(levels - 1, -1, -1)
    return {
        "in_channels": ends[0],
        "out_channels": ends[1],
        "down_block_types": [
            "AttnDownEncoderBlock2D" if numbered(state, f"encoder.down.{level}.attn.") else "DownEncoderBlock2D"
            for level in range(levels)
        ],
        "up_block_types": [
            "AttnUpDecoderBlock2D" if numbered(state, f"decoder.up.{level}.attn.") else "UpDecoderBlock2D"
            for level in coarsest_first
        ],
        "block_out_channels": widths,
        "layers_per_block": numbered(state, "encoder.down.0.block."),
        "act_fn": "silu",
        "latent_channels": latent_channels,
        "norm_num_groups": NORM_GROUPS,
        "use_quant_conv": any(name.startswith("quant_conv.") for name in state),
        "use_post_quant_conv": any(name.startswith("post_quant_conv.") for name in state),
        "mid_block_add_attention": any(name.startswith("encoder.mid.attn_1.") for name in state),
    }


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with diffusers' names and shapes."""
    levels = numbered(state, "encoder.down.")
    return dict(_renamed(name, value, levels) for name, value in state.items())


def _renamed(name: str, value: Tensor, levels: int) -> tuple[str, Tensor]:
    if match := LEVEL.fullmatch(name):
        half, level, part, rest = match[1], int(match[2]), match[3], match[4]
        place = f"encoder.down_blocks.{level}" if half == "encoder" else f"decoder.up_blocks.{levels - 1 - level}"
        if part in {"downsample", "upsample"}:
            return f"{place}.{part}rs.0.{rest}", value
        number, rest = rest.split(".", 1)
        return _layer(f"{place}.{'resnets' if part == 'block' else 'attentions'}.{number}", part, rest, value)
    if match := MIDDLE.fullmatch(name):
        half, part, number, rest = match[1], match[2], int(match[3]), match[4]
        place = f"{half}.mid_block.{'resnets' if part == 'block' else 'attentions'}.{number - 1}"
        return _layer(place, part, rest, value)
    return name.replace(".norm_out.", ".conv_norm_out."), value


def _layer(place: str, part: str, rest: str, value: Tensor) -> tuple[str, Tensor]:
    if part == "block":
        return f"{place}.{rest.replace('nin_shortcut', 'conv_shortcut')}", value
    layer, kind = rest.rsplit(".", 1)
    is_matrix = layer != "norm" and kind == "weight" and value.dim() == 4
    return f"{place}.{ATTENTION.get(layer, layer)}.{kind}", value[:, :, 0, 0] if is_matrix else value
