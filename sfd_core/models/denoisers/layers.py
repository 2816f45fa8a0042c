"""Layers that the denoisers share.

Shapes: N images, C channels, g latent positions along a side, p positions of a patch along a side, T = (g / p)^2 tokens,
D width, H heads, K = D / H. Parameter names are those of the public checkpoints.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sfd_core.host.errors import ConfigError
from sfd_core.models.denoisers import fused

ROPE_THETA = 10_000.0
NORM_EPS = 1e-6


class PatchEmbedding(nn.Module):
    """Linear embedding of p x p patches: (N, C, g, g) -> (N, T, D), tokens row by row.

    The weight has the shape of a convolution, as in the public checkpoints; a matrix product is faster for so few positions.
    """

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch, stride=patch)
        nn.init.xavier_uniform_(self.proj.weight.view(width, -1))
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (N, T, D) for x (N, C, g, g)."""
        return F.linear(patchify(x, self.patch), self.proj.weight.flatten(1), self.proj.bias)


def patchify(x: Tensor, patch: int) -> Tensor:
    """Split (N, C, g, g) into tokens (N, T, C p p), in the order of a convolution's weight."""
    n, c, height, width = x.shape
    x = x.view(n, c, height // patch, patch, width // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(n, (height // patch) * (width // patch), c * patch * patch)


def unpatchify(tokens: Tensor, patch: int, grid: int) -> Tensor:
    """Join tokens (N, T, p p C), channels last as in the public checkpoints, to (N, C, g, g)."""
    n, _, features = tokens.shape
    channels = features // patch**2
    tokens = tokens.view(n, grid // patch, grid // patch, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
    return tokens.reshape(n, channels, grid, grid)


class TimestepEmbedding(nn.Module):
    """256 sinusoids of a time (N,) and a two-layer perceptron: (N, width)."""

    def __init__(self, width: int, sinusoids: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(sinusoids, width), nn.SiLU(), nn.Linear(width, width))
        half = sinusoids // 2
        frequencies = torch.exp(torch.arange(half) * (-math.log(10_000.0) / half))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.frequencies: Tensor

    def forward(self, t: Tensor) -> Tensor:
        """Return (N, width) for times (N,), which may be fractions."""
        angles = t.float()[:, None] * self.frequencies
        embedded: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))
        return embedded


class LabelEmbedding(nn.Module):
    """One row per class and a last row, `num_classes`, for the null class: (N,) -> (N, width)."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        """Return (N, width) for labels (N,) in 0..num_classes."""
        embedded: Tensor = self.embedding_table(labels)
        return embedded


class RotaryEmbedding(nn.Module):
    """Tables of 2-D rotary positions (RoFormer, theta 10000): half of a head rotates with the row, half with the column.

    Neighbouring features form a pair with the same angle.
    """

    def __init__(self, head_width: int, grid: int) -> None:
        super().__init__()
        if head_width % 4:
            raise ConfigError(f"heads of width {head_width} cannot hold 2-D rotary positions; choose a multiple of 4")
        per_axis = head_width // 2
        frequencies = ROPE_THETA ** -(torch.arange(0, per_axis, 2).float() / per_axis)
        angles = torch.outer(torch.arange(grid).float(), frequencies.repeat_interleave(2))
        rows = angles[:, None, :].expand(grid, grid, per_axis)
        columns = angles[None, :, :].expand(grid, grid, per_axis)
        angles = torch.cat([rows, columns], dim=-1).view(grid * grid, head_width)
        self.register_buffer("freqs_cos", angles.cos())
        self.register_buffer("freqs_sin", angles.sin())
        self.freqs_cos: Tensor
        self.freqs_sin: Tensor

    def rotation(self) -> Tensor:
        """Return the rotations as cosine and sine (T, 1, 1, K / 2, 2)."""
        turns = torch.stack((self.freqs_cos[:, ::2].float(), self.freqs_sin[:, ::2].float()), dim=-1)
        return turns[:, None, None]


class Attention(nn.Module):
    """Multi-head self-attention of tokens (N, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, T, D) for tokens (N, T, D)."""
        return self._attend(*self._split(x).unbind(2))

    def _split(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv: Tensor = self.qkv(x)
        return qkv.view(n, tokens, 3, self.heads, width // self.heads)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected


class RotaryAttention(Attention):
    """Self-attention with queries and keys that are RMS-normalised per head (QK-norm) and rotated by their position."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.q_norm = nn.RMSNorm(width // heads, eps=NORM_EPS)
        self.k_norm = nn.RMSNorm(width // heads, eps=NORM_EPS)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:  # type: ignore[override]
        """Return (N, T, D) for tokens (N, T, D) and the rotation (T, 1, 1, K / 2, 2) of `RotaryEmbedding`."""
        weights = torch.stack((self.q_norm.weight, self.k_norm.weight)).unsqueeze(1)
        return self._attend(*fused.normalise_and_rotate(self._split(x), weights, rotation, NORM_EPS))


class ModulatedRMSNorm(nn.RMSNorm):
    """RMSNorm of tokens (N, T, D), followed by a modulation per image."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        """Return RMSNorm(x) (1 + scale) + shift for shift and scale (N, 1, D)."""
        return fused.modulated_rms_norm(x, self.weight, shift, scale, NORM_EPS)


class SwiGLU(nn.Module):
    """w3(silu(a) * b) with (a, b) = w12(x); hidden width int(2/3 * 4 * D) (Shazeer, GLU Variants Improve Transformer)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(2 / 3 * (4 * width))
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, T, D) for tokens (N, T, D)."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        projected: Tensor = self.w3(F.silu(gate) * value)
        return projected


class MLP(nn.Module):
    """Two linear layers with a tanh-approximated GELU; hidden width 4 D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, T, D) for tokens (N, T, D)."""
        projected: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return projected


def through(block: nn.Module, recompute: bool, *inputs: Tensor) -> Tensor:
    """Return `block(*inputs)`; with `recompute`, activations are recomputed in the backward pass instead of stored."""
    if not recompute:
        return block(*inputs)  # type: ignore[no-any-return]
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]


def modulation(width: int, outputs: int) -> nn.Sequential:
    """Return the adaLN-zero head: a condition (N, D) -> (N, outputs * D), zero at the start of training."""
    linear = nn.Linear(width, outputs * width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.SiLU(), linear)


def sincos_positions(width: int, grid: int) -> Tensor:
    """Return fixed positions (1, grid^2, width): the first half encodes the column, the second the row (MAE, as in DiT)."""
    if width % 4:
        raise ConfigError(f"a width of {width} cannot hold 2-D sin-cos positions; choose a multiple of 4")
    quarter = width // 4
    frequencies = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.outer(torch.arange(grid, dtype=torch.float64), frequencies)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = axis[None, :, :].expand(grid, grid, 2 * quarter)
    rows = axis[:, None, :].expand(grid, grid, 2 * quarter)
    return torch.cat([columns, rows], dim=2).view(1, grid * grid, width).float()


def initialise_linears(module: nn.Module) -> None:
    """Initialise every linear layer with Xavier-uniform weights and a zero bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def initialise_conditioning(model: nn.Module) -> None:
    """Initialise embedders with small normal weights, and modulation and output with zeros (adaLN-zero, Peebles & Xie)."""
    for module in model.modules():
        if isinstance(module, TimestepEmbedding):
            nn.init.normal_(module.mlp[0].weight, std=0.02)  # type: ignore[arg-type]
            nn.init.normal_(module.mlp[2].weight, std=0.02)  # type: ignore[arg-type]
        elif isinstance(module, LabelEmbedding):
            nn.init.normal_(module.embedding_table.weight, std=0.02)
    for name, parameter in model.named_parameters():
        if ".adaLN_modulation." in name or name.startswith(("final_layer.linear.", "inner_layer.linear.")):
            nn.init.zeros_(parameter)
