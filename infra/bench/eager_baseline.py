"""What the engine is measured against: the same network and the same training, written the straightforward way.

Plain torch modules whose gradients autograd derives, AdamW as it is constructed by default, one EMA operation after the other,
the loss read in every step, and a `DataLoader` whose data set opens a file for every item. Parameter names are those of
`sfd_core.models.denoisers.lightningdit`, so that either network loads the other's weights. Shapes: N images, T tokens, D width.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

ENDLESS = 2**40
"""Images: at the end of an epoch the readers would pause, of which a short run has many."""


class RMSNorm(nn.Module):
    """x / rms(x), times a weight."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., D) normalised over its last axis."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return tokens x (N, T, D) scaled and shifted image by image, shift and scale (N, D)."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def rotate_half(x: Tensor) -> Tensor:
    """Return x (..., K) with every pair of neighbours (a, b) turned into (-b, a)."""
    first, second = x[..., ::2], x[..., 1::2]
    return torch.stack((-second, first), dim=-1).flatten(-2)


class Rotary(nn.Module):
    """Rotates queries and keys (N, H, T, K) by their 2-D position."""

    def __init__(self, head_width: int, side: int, theta: float = 10_000.0) -> None:
        super().__init__()
        half = head_width // 2
        frequencies = 1.0 / theta ** (torch.arange(0, half, 2).float() / half)
        axis = (torch.arange(side).float()[:, None] * frequencies).repeat_interleave(2, dim=-1)
        rows = axis[:, None, :].expand(side, side, half)
        columns = axis[None, :, :].expand(side, side, half)
        angles = torch.cat((rows, columns), dim=-1).reshape(side * side, head_width)
        self.register_buffer("freqs_cos", angles.cos())
        self.register_buffer("freqs_sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, H, T, K), rotated."""
        return x * self.freqs_cos + rotate_half(x) * self.freqs_sin


class Attention(nn.Module):
    """Multi-head self-attention with normalised and rotated queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: Rotary) -> Tensor:
        """Return (N, T, D)."""
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = rope(self.q_norm(q)), rope(self.k_norm(k))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, tokens, width))


class SwiGLU(nn.Module):
    """The gated perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(2 / 3 * (4 * width))
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, T, D)."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    """A transformer block with adaLN-zero."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = RMSNorm(width), Attention(width, heads)
        self.norm2, self.mlp = RMSNorm(width), SwiGLU(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor, rope: Rotary) -> Tensor:
        """Return tokens (N, T, D) for tokens (N, T, D) and a condition (N, D)."""
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_msa.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_msa, scale_msa), rope)
        return x + gate_mlp.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    """The last norm and the layer to the values of a patch."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width)
        self.linear = nn.Linear(width, out_features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return (N, T, values of a patch)."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class TimestepEmbedder(nn.Module):
    """Sinusoids of a time, then two layers."""

    def __init__(self, width: int, frequency_embedding_size: int = 256) -> None:
        super().__init__()
        self.frequency_embedding_size = frequency_embedding_size
        self.mlp = nn.Sequential(nn.Linear(frequency_embedding_size, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Return (N, D) for times (N,)."""
        half = self.frequency_embedding_size // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / half).to(t.device)
        angles = t[:, None].float() * frequencies[None]
        return self.mlp(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))


class LabelEmbedder(nn.Module):
    """One row for each class and one for none."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        """Return (N, D) for labels (N,)."""
        return self.embedding_table(labels)


class PatchEmbed(nn.Module):
    """Patches by a strided convolution."""

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (N, T, D) for x (N, C, g, g)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class EagerLightningDiT(nn.Module):
    """LightningDiT with two clocks (SFD, arXiv 2512.04926, section 3), as `models.denoisers.lightningdit` computes it."""

    def __init__(  # noqa: PLR0913 (the shape of the network)
        self, depth: int, width: int, heads: int, in_channels: int = 48, grid: int = 16, patch: int = 1, num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.patch, self.channels, side = patch, in_channels, grid // patch
        self.x_embedder = PatchEmbed(in_channels, width, patch)
        self.t_embedder_sem, self.t_embedder_tex = TimestepEmbedder(width // 2), TimestepEmbedder(width // 2)
        self.y_embedder = LabelEmbedder(num_classes, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side, width), requires_grad=False)
        self.feat_rope = Rotary(width // heads, side)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.final_layer = FinalLayer(width, patch * patch * in_channels)

    def unpatchify(self, x: Tensor) -> Tensor:
        """Return (N, C, g, g) for tokens (N, T, p p C)."""
        side, p = int(x.shape[1] ** 0.5), self.patch
        x = x.reshape(x.shape[0], side, side, p, p, self.channels)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], self.channels, side * p, side * p)

    def forward(self, x: Tensor, t_tex: Tensor, t_sem: Tensor, y: Tensor) -> Tensor:
        """Return the velocity (N, C, g, g)."""
        x = self.x_embedder(x) + self.pos_embed
        c = torch.cat([self.t_embedder_sem(t_sem), self.t_embedder_tex(t_tex)], dim=-1) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c, self.feat_rope)
        return self.unpatchify(self.final_layer(x, c))


class LatentFiles(Dataset[tuple[Tensor, Tensor]]):
    """Latents in safetensors files of `rows` images each: `latents`, `latents_flip` (rows, C, g, g) and `labels` (rows,)."""

    def __init__(self, files: list[Path], rows: int, mean: Tensor, std: Tensor, flips: bool = True) -> None:
        self.files, self.rows, self.flips = files, rows, flips
        self.mean, self.std = mean[:, None, None], std[:, None, None]

    def __len__(self) -> int:
        return len(self.files) * self.rows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        flip = self.flips and np.random.uniform() < 0.5  # noqa: NPY002 (as such code is written)
        row = index % self.rows
        with safe_open(self.files[index // self.rows], framework="pt", device="cpu") as file:
            latent = file.get_slice("latents_flip" if flip else "latents")[row : row + 1].squeeze(0)
            label = file.get_slice("labels")[row : row + 1].squeeze(0)
        return (latent - self.mean) / self.std, label


@dataclass(frozen=True)
class Recipe:
    """Values of the training, as in `VariantParams`, `TrainParams` and `Optimisation`."""

    n_texture: int
    num_classes: int
    delta_t: float
    semantic_weight: float
    cosine_weight: float
    class_dropout: float
    mask_clamped: bool
    learning_rate: float
    betas: tuple[float, float]
    clip_norm: float
    ema_decay: float
    bfloat16: bool
    """Whether the network runs under autocast."""


def training_loss(model: nn.Module, x1: Tensor, y: Tensor, recipe: Recipe) -> Tensor:
    """Return the loss of normalised latents x1 (N, C, g, g) with labels y (N,)."""
    n, n_tex, device = len(x1), recipe.n_texture, x1.device
    y = torch.where(torch.rand(n, device=device) < recipe.class_dropout, recipe.num_classes, y)
    u = torch.sigmoid(torch.randn(n, device=device)) * (1 + recipe.delta_t)
    t_tex, t_sem = (u - recipe.delta_t).clamp(min=0), u.clamp(max=1)
    x0 = torch.randn_like(x1)
    t = torch.cat([t_tex[:, None].expand(n, n_tex), t_sem[:, None].expand(n, x1.shape[1] - n_tex)], dim=1)[:, :, None, None]
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
        prediction = model(t * x1 + (1 - t) * x0, t_tex, t_sem, y).float()
    target = x1 - x0
    if recipe.mask_clamped:
        keep = torch.cat(
            [(u >= recipe.delta_t)[:, None].expand(n, n_tex), (u < 1)[:, None].expand(n, x1.shape[1] - n_tex)], dim=1
        )
        prediction, target = prediction * keep[:, :, None, None], target * keep[:, :, None, None]
    error = (prediction - target) ** 2
    mse = torch.cat([error[:, :n_tex], error[:, n_tex:] * recipe.semantic_weight], dim=1).mean()
    cosine = (1 - F.cosine_similarity(prediction, target, dim=1)).mean()
    return mse + recipe.cosine_weight * cosine


@torch.no_grad()
def update_ema(ema_model: nn.Module, model: nn.Module, decay: float) -> None:
    """Move every averaged weight towards the model's, one after the other."""
    averaged = dict(ema_model.named_parameters())
    for name, parameter in model.named_parameters():
        averaged[name].mul_(decay).add_(parameter.data, alpha=1 - decay)


def train(model: nn.Module, data: LatentFiles, recipe: Recipe, batch_size: int, readers: int = 0) -> Iterator[float]:
    """Train for ever, on the model's device; yield the loss of every step once the step is done."""
    model.train()
    device = next(model.parameters()).device
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=0)
    pinned, kept = device.type == "cuda", readers > 0
    loader = DataLoader(
        data,
        batch_size=batch_size,
        sampler=RandomSampler(data, replacement=True, num_samples=ENDLESS),
        num_workers=readers,
        pin_memory=pinned,
        persistent_workers=kept,
    )
    for x, y in loader:
        loss = training_loss(model, x.to(device), y.to(device), recipe)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        update_ema(ema, model, recipe.ema_decay)
        yield loss.item()
