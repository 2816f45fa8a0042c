"""An AutoencoderKL in latent diffusion's own structure and names (arXiv 2112.10752), to compare converted networks with.

GroupNorm of 32 groups with eps 1e-6, swish, one attention head of 1x1 convolutions, padding at the right and the bottom
before a stride of two, nearest up-sampling.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm1(x)
        hidden = self.conv1(hidden * torch.sigmoid(hidden))
        hidden = self.norm2(hidden)
        hidden = self.conv2(hidden * torch.sigmoid(hidden))
        return hidden + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(torch.einsum("nci,ncj->nij", q, k) / q.shape[1] ** 0.5, dim=2)
        return x + self.proj_out(torch.einsum("nij,ncj->nci", weights, v).reshape(x.shape))


class Resample(nn.Module):
    def __init__(self, channels: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks, each followed by attention where there is any, then a change of resolution."""

    def __init__(self, widths: tuple[int, int], blocks: int, attention: bool, resample: bool | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(widths[0] if i == 0 else widths[1], widths[1]) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(widths[1]) for _ in range(blocks if attention else 0))
        if resample is not None:
            setattr(self, "downsample" if resample else "upsample", Resample(widths[1], resample))

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            x = self.attn[number](x) if len(self.attn) else x
        for name in ("downsample", "upsample"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return x


def middle(channels: int) -> nn.Module:
    mid = nn.Module()
    mid.block_1, mid.attn_1, mid.block_2 = ResnetBlock(channels, channels), AttnBlock(channels), ResnetBlock(channels, channels)
    return mid


def through_middle(mid: nn.Module, x: Tensor) -> Tensor:
    return mid.block_2(mid.attn_1(mid.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, ch: int, mult: Sequence[int], attention: Sequence[bool], z: int, blocks: int) -> None:
        super().__init__()
        widths = [ch, *(ch * factor for factor in mult)]
        last = len(mult) - 1
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level((widths[i], widths[i + 1]), blocks, attention[i], True if i < last else None) for i in range(len(mult))
        )
        self.mid = middle(widths[-1])
        self.norm_out, self.conv_out = norm(widths[-1]), nn.Conv2d(widths[-1], 2 * z, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(through_middle(self.mid, x))))


class Decoder(nn.Module):
    def __init__(self, ch: int, mult: Sequence[int], attention: Sequence[bool], z: int, blocks: int) -> None:
        super().__init__()
        widths = [ch * factor for factor in mult]
        self.conv_in = nn.Conv2d(z, widths[-1], 3, padding=1)
        self.mid = middle(widths[-1])
        # `up` is listed from the finest level to the coarsest, and run the other way
        self.up = nn.ModuleList(
            Level((widths[min(i + 1, len(mult) - 1)], widths[i]), blocks + 1, attention[i], False if i > 0 else None)
            for i in range(len(mult))
        )
        self.norm_out, self.conv_out = norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = through_middle(self.mid, self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class LatentDiffusionVAE(nn.Module):
    """`attention` says for each level, finest first, whether it has any."""

    def __init__(self, ch: int, mult: Sequence[int], attention: Sequence[bool], z: int, blocks: int = 2) -> None:
        super().__init__()
        self.encoder = Encoder(ch, mult, attention, z, blocks)
        self.decoder = Decoder(ch, mult, attention, z, blocks)
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1)
        self.post_quant_conv = nn.Conv2d(z, z, 1)

    def moments(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))


def f16(width: int = 32, z: int = 4) -> LatentDiffusionVAE:
    """The layout of SD-VAE and VA-VAE f16d32, every weight random and as it is after training: not zero, not one."""
    return randomised(LatentDiffusionVAE(width, (1, 1, 2, 2, 4), (False, False, False, False, True), z))


def f8() -> LatentDiffusionVAE:
    """The layout of Stable Diffusion's f8d4, narrow."""
    return randomised(LatentDiffusionVAE(32, (1, 2, 4, 4), (False,) * 4, z=4))


def randomised(vae: LatentDiffusionVAE) -> LatentDiffusionVAE:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return vae.eval().requires_grad_(False)
