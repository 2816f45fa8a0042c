"""LightningDiT, the velocity network (Yao et al., arXiv 2501.01423), with SFD's two times (arXiv 2512.04926, section 3).

Shapes as in `layers`. Parameter names and layout are those of the public checkpoints, which load without conversion.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sfd_core.diffusion.path import by_channel, velocity_to
from sfd_core.experiment.sizes import ModelSize
from sfd_core.models.denoisers import layers


@dataclass(frozen=True)
class RepaHead:
    """REPA's projector: the block whose hidden states it projects, its hidden width, and the channels of encoder tokens."""

    block: int
    width: int
    target_channels: int


@dataclass(frozen=True)
class DenoiserOutput:
    """A velocity (N, C, g, g); in training with REPA the projected hidden states (N, target channels, g, g); with an inner head
    the velocity that it reads from its block (N, C, g, g).
    """

    prediction: Tensor
    repa_tokens: Tensor | None = None
    inner: Tensor | None = None


class Block(nn.Module):
    """Pre-norm attention and SwiGLU, both modulated and gated by the condition (adaLN-zero with shift)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = layers.ModulatedRMSNorm(width)
        self.attn = layers.RotaryAttention(width, heads)
        self.norm2 = layers.ModulatedRMSNorm(width)
        self.mlp = layers.SwiGLU(width)
        self.adaLN_modulation = layers.modulation(width, outputs=6)

    def forward(self, x: Tensor, condition: Tensor, rotation: Tensor) -> Tensor:
        """Return tokens (N, T, D) for tokens (N, T, D) and a condition (N, 1, D)."""
        parts = self.adaLN_modulation(condition).chunk(6, dim=-1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = parts
        x = torch.addcmul(x, gate_attn, self.attn(self.norm1(x, shift_attn, scale_attn), rotation))
        return torch.addcmul(x, gate_mlp, self.mlp(self.norm2(x, shift_mlp, scale_mlp)))


class FinalLayer(nn.Module):
    """Modulated norm and a linear layer to the values of a patch; its output is zero at the start of training."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = layers.ModulatedRMSNorm(width)
        self.linear = nn.Linear(width, out_features)
        self.adaLN_modulation = layers.modulation(width, outputs=2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return values (N, T, p p C) for tokens (N, T, D) and a condition (N, 1, D)."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        projected: Tensor = self.linear(self.norm_final(x, shift, scale))
        return projected


class LightningDiT(nn.Module):
    """Predicts the velocity of a latent (N, C, g, g) at one time, or at a texture and a semantic time, given class labels.

    With `data_texture`, the number of texture channels, it predicts the data, from which the velocity follows.
    With 2 `embedders` it is conditioned on both times, with 1 on that of texture (also public synchronous ones).
    Label `num_classes` is the null class.
    """

    def __init__(  # noqa: PLR0913 (all describe the shape of the network)
        self,
        size: ModelSize,
        in_channels: int,
        grid: int,
        patch: int,
        num_classes: int,
        embedders: Literal[1, 2],
        repa: RepaHead | None = None,
        inner_block: int | None = None,
        data_texture: int | None = None,
    ) -> None:
        super().__init__()
        width, side = size.width, grid // patch
        self.in_channels, self.grid, self.patch = in_channels, grid, patch
        self.num_classes, self.embedders, self.repa, self.inner_block = num_classes, embedders, repa, inner_block
        self.activation_checkpointing, self.data_texture = False, data_texture
        self.x_embedder = layers.PatchEmbedding(in_channels, width, patch)
        self.pos_embed = nn.Parameter(layers.sincos_positions(width, side), requires_grad=False)
        if embedders == 2:
            self.t_embedder_sem = layers.TimestepEmbedding(width // 2)
            self.t_embedder_tex = layers.TimestepEmbedding(width // 2)
        else:
            self.t_embedder = layers.TimestepEmbedding(width)
        self.y_embedder = layers.LabelEmbedding(num_classes, width)
        self.feat_rope = layers.RotaryEmbedding(width // size.heads, side)
        self.blocks = nn.ModuleList(Block(width, size.heads) for _ in range(size.depth))
        self.final_layer = FinalLayer(width, patch**2 * in_channels)
        if repa is not None:
            self.repa_projector = _projector(width, repa, patch)
        if inner_block is not None:
            self.inner_layer = FinalLayer(width, patch**2 * in_channels)
        layers.initialise_linears(self)
        layers.initialise_conditioning(self)

    def forward(self, x: Tensor, t_tex: Tensor, t_sem: Tensor, labels: Tensor) -> DenoiserOutput:
        """Predict the velocity of x (N, C, g, g) at times t_tex, t_sem (N,) in [0, 1] for labels (N,)."""
        condition = (self._embed_times(t_tex, t_sem) + self.y_embedder(labels)).unsqueeze(1)
        rotation = self.feat_rope.rotation()
        tokens = self.x_embedder(x) + self.pos_embed
        repa_tokens = inner = None
        for number, block in enumerate(self.blocks, start=1):
            tokens = layers.through(block, self.activation_checkpointing and self.training, tokens, condition, rotation)
            if self.repa is not None and self.training and number == self.repa.block:
                repa_tokens = layers.unpatchify(self.repa_projector(tokens), self.patch, self.grid)
            if number == self.inner_block:
                inner = self._velocity(self.inner_layer(tokens, condition), x, t_tex, t_sem)
        return DenoiserOutput(self._velocity(self.final_layer(tokens, condition), x, t_tex, t_sem), repa_tokens, inner)

    def _velocity(self, patches: Tensor, x: Tensor, t_tex: Tensor, t_sem: Tensor) -> Tensor:
        predicted = layers.unpatchify(patches, self.patch, self.grid).to(x.dtype)
        if self.data_texture is None:
            return predicted
        times = by_channel(t_tex, t_sem, self.data_texture, self.in_channels)
        return velocity_to(predicted, x, times)

    def _embed_times(self, t_tex: Tensor, t_sem: Tensor) -> Tensor:
        if self.embedders == 2:
            # The public checkpoints store the semantic half first, although texture is first everywhere else.
            return torch.cat([self.t_embedder_sem(t_sem), self.t_embedder_tex(t_tex)], dim=1)
        embedded: Tensor = self.t_embedder(t_tex)
        return embedded


def clocks_of(state: Mapping[str, Tensor]) -> Literal[1, 2]:
    """Return the number of time embedders of these weights."""
    return 2 if any(name.startswith("t_embedder_sem.") for name in state) else 1


def _projector(width: int, repa: RepaHead, patch: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, repa.width),
        nn.SiLU(),
        nn.Linear(repa.width, repa.width),
        nn.SiLU(),
        nn.Linear(repa.width, patch**2 * repa.target_channels),
    )
