"""Two elementwise chains of LightningDiT with hand-written gradients.

Autograd would read and write memory two to three times as often, which slows down small models on a CPU. A compiler fuses the
plain formulas itself, and better: in blocks that are compiled they stand alone. Shapes as in `layers`.
Statistics are computed in float32 (in float64 for float64 input).
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def modulated_rms_norm(x: Tensor, weight: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return RMSNorm(x) weight (1 + scale) + shift for tokens (N, T, D), weight (D,), shift and scale (N, 1, D)."""
    if torch.compiler.is_compiling():
        return _rms_normalised(x, eps) * weight * (1 + scale) + shift
    return cast("Tensor", _ModulatedRMSNorm.apply(x, weight, shift, scale, eps))


def normalise_and_rotate(qkv: Tensor, weights: Tensor, rotation: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values (N, T, H, K) of `qkv` (N, T, 3, H, K).

    Queries and keys are RMS-normalised per head and multiplied by `weights` (2, 1, K). Their neighbouring features are then
    rotated as pairs by `rotation` (T, 1, 1, K / 2, 2), cosine and sine.
    """
    if torch.compiler.is_compiling():
        q, k, v = qkv.unbind(2)
        q, k = (_rotated(_rms_normalised(x, eps) * weight, rotation[:, 0]) for x, weight in ((q, weights[0]), (k, weights[1])))
        return q.to(qkv.dtype), k.to(qkv.dtype), v
    parts = _NormaliseAndRotate.apply(qkv, weights, rotation, eps)
    return cast("tuple[Tensor, Tensor, Tensor]", parts)


def _rms_normalised(x: Tensor, eps: float) -> Tensor:
    x = _widen(x)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Return what `_rotate` does; compilers leave complex numbers to kernels of their own."""
    cosine, sine = rotation.unbind(-1)
    pairs = x.view(*x.shape[:-1], -1, 2)
    return (pairs * cosine.unsqueeze(-1) + pairs.flip(-1) * torch.stack((-sine, sine), dim=-1)).flatten(-2)


class _ModulatedRMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
        x = _widen(x)
        inverse = _inverse_rms(x, eps)
        normed = x * inverse
        widened = 1 + scale
        factor = widened * weight
        ctx.save_for_backward(normed, inverse, weight, widened, factor)
        return torch.addcmul(shift, normed, factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normed, inverse, weight, widened, factor = ctx.saved_tensors
        products = grad * normed
        grad_factor = products.sum(1, keepdim=True)
        grad_x = _norm_backward(grad * factor, products.mul_(factor), normed, inverse)
        return grad_x, (grad_factor * widened).sum((0, 1)), grad.sum(1, keepdim=True), grad_factor * weight, None


class _NormaliseAndRotate(Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, weights: Tensor, rotation: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        qk = _widen(qkv[:, :, :2])
        inverse = _inverse_rms(qk, eps)
        normed = qk * inverse
        ctx.save_for_backward(normed, inverse, weights, rotation)
        rotated = _rotate(normed * weights, torch.view_as_complex(rotation)).to(qkv.dtype)
        return rotated[:, :, 0], rotated[:, :, 1], qkv[:, :, 2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        normed, inverse, weights, rotation = ctx.saved_tensors
        grad = torch.stack((grad_q, grad_k, grad_v), dim=2)
        turned = _rotate(_widen(grad[:, :, :2]), torch.view_as_complex(rotation).conj())
        products = turned * normed
        # Images and tokens first, then heads: one reduction over all three is many times slower on a CPU.
        grad_weights = products.flatten(0, 1).sum(0).sum(1, keepdim=True)
        grad[:, :, :2] = _norm_backward(turned.mul_(weights), products.mul_(weights), normed, inverse)
        return grad, grad_weights, None, None


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.rsqrt(norm.square() / x.shape[-1] + eps)


def _norm_backward(grad: Tensor, products: Tensor, normed: Tensor, inverse: Tensor) -> Tensor:
    """Return the gradient before RMS normalisation of `grad` after it, with products = grad * normed."""
    mean = products.sum(-1, keepdim=True) / -normed.shape[-1]
    return torch.addcmul(grad, normed, mean).mul_(inverse)


def _rotate(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)
