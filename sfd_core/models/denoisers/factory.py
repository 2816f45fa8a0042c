"""Builds the network of a variant."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from sfd_core.experiment.params import VariantParams
from sfd_core.experiment.sizes import MODEL_SIZES
from sfd_core.host.seeding import derive_seed
from sfd_core.models.denoisers.dit import DiT
from sfd_core.models.denoisers.lightningdit import LightningDiT, RepaHead


@dataclass(frozen=True)
class LatentSpec:
    """Shape of a variant's latent: channels (semantic 0: texture only), grid, and the encoder's token channels."""

    texture_channels: int
    semantic_channels: int
    grid: int
    token_channels: int

    @property
    def channels(self) -> int:
        """Channels of the composite latent."""
        return self.texture_channels + self.semantic_channels


def build_denoiser(
    variant: VariantParams, latent: LatentSpec, num_classes: int, clocks: Literal[1, 2] | None = None
) -> LightningDiT | DiT:
    """Return the network of `variant` on the default device, with initial weights from the variant's seed.

    A composite has separate time embedders for texture and semantics, unless `clocks` is 1 as in public synchronous
    checkpoints.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(variant.seed, "initial weights"))
        return _build(variant, latent, num_classes, clocks or (2 if latent.semantic_channels > 0 else 1))


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, including the fixed positions, as the papers do."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops_per_image(model: LightningDiT | DiT) -> int:
    """Return the floating-point operations of a forward pass per image (a multiply-add is two), without running it.

    Counts matrix products and attention only; in training mode including the REPA projector.
    """
    state = {name: value.to("meta") for name, value in (*model.named_parameters(), *model.named_buffers())}
    x = torch.empty(1, model.in_channels, model.grid, model.grid, device="meta")
    t = torch.empty(1, device="meta")
    times = (t,) if isinstance(model, DiT) else (t, t)
    labels = torch.empty(1, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(model, state, (x, *times, labels))
    return int(counter.get_total_flops())


def _build(variant: VariantParams, latent: LatentSpec, num_classes: int, clocks: Literal[1, 2]) -> LightningDiT | DiT:
    size = MODEL_SIZES[variant.size]
    if variant.model == "dit":
        return DiT(size, latent.texture_channels, latent.grid, variant.patch, num_classes)
    repa = variant.repa
    head = RepaHead(repa.block, repa.width, latent.token_channels) if repa.weight > 0 else None
    inner = None if variant.inner is None else variant.inner.block
    data_texture = latent.texture_channels if variant.prediction == "data" else None
    return LightningDiT(size, latent.channels, latent.grid, variant.patch, num_classes, clocks, head, inner, data_texture)
