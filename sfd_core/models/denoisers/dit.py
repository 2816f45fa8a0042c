"""DiT, the epsilon-predicting baseline (Peebles & Xie, arXiv 2212.09748).

Shapes as in `layers`. Parameter names are those of the public checkpoints.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfd_core.experiment.sizes import ModelSize
from sfd_core.models.denoisers import layers


class DiTBlock(nn.Module):
    """Pre-norm attention and GELU perceptron, both modulated and gated by the condition (adaLN-zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = layers.Attention(width, heads)
        self.mlp = layers.MLP(width)
        self.adaLN_modulation = layers.modulation(width, outputs=6)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return tokens (N, T, D) for tokens (N, T, D) and a condition (N, 1, D)."""
        parts = self.adaLN_modulation(condition).chunk(6, dim=-1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = parts
        x = torch.addcmul(x, gate_attn, self.attn(_norm(x, shift_attn, scale_attn)))
        return torch.addcmul(x, gate_mlp, self.mlp(_norm(x, shift_mlp, scale_mlp)))


class DiTFinalLayer(nn.Module):
    """Modulated norm and a linear layer to the values of a patch; its output is zero at the start of training."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out_features)
        self.adaLN_modulation = layers.modulation(width, outputs=2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return values (N, T, p p 2C) for tokens (N, T, D) and a condition (N, 1, D)."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        projected: Tensor = self.linear(_norm(x, shift, scale))
        return projected


class DiT(nn.Module):
    """Predicts noise and variance of a latent (N, C, g, g) at one of 1000 noise levels, given class labels.

    Label `num_classes` is the null class.
    """

    def __init__(self, size: ModelSize, in_channels: int, grid: int, patch: int, num_classes: int) -> None:
        super().__init__()
        self.in_channels, self.grid, self.patch, self.num_classes = in_channels, grid, patch, num_classes
        self.activation_checkpointing = False
        self.x_embedder = layers.PatchEmbedding(in_channels, size.width, patch)
        self.pos_embed = nn.Parameter(layers.sincos_positions(size.width, grid // patch), requires_grad=False)
        self.t_embedder = layers.TimestepEmbedding(size.width)
        self.y_embedder = layers.LabelEmbedding(num_classes, size.width)
        self.blocks = nn.ModuleList(DiTBlock(size.width, size.heads) for _ in range(size.depth))
        self.final_layer = DiTFinalLayer(size.width, patch**2 * 2 * in_channels)
        layers.initialise_linears(self)
        layers.initialise_conditioning(self)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Return epsilon and variance values (N, 2 C, g, g) of x (N, C, g, g) at levels t (N,) in 0..999 for labels (N,)."""
        condition = (self.t_embedder(t) + self.y_embedder(labels)).unsqueeze(1)
        tokens = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            tokens = layers.through(block, self.activation_checkpointing and self.training, tokens, condition)
        return layers.unpatchify(self.final_layer(tokens, condition), self.patch, self.grid).to(x.dtype)


def _norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=layers.NORM_EPS), 1 + scale)
