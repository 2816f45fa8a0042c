"""Two elementwise chains of LightningDiT with hand-written gradients.

Autograd would read and write memory two to three times as often, which slows down small models on a CPU. Shapes as in `layers`.
Statistics are computed in float32 (in float64 for float64 input).
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def modulated_rms_norm(x: Tensor, weight: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return RMSNorm(x) weight (1 + scale) + shift for tokens (N, T, D), weight (D,), shift and scale (N, 1, D)."""
    return cast("Tensor", _ModulatedRMSNorm.apply(x, weight, shift, scale, eps))


def normalise_and_rotate(qkv: Tensor, weights: Tensor, rotation: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values (N, T, H, K) of `qkv` (N, T, 3, H, K).

    Queries and keys are RMS-normalised per head and multiplied by `weights` (2, 1, K). Their neighbouring features are then
    rotated as pairs by `rotation` (T, 1, 1, K / 2, 2), cosine and sine.
    """
    parts = _NormaliseAndRotate.apply(qkv, weights, rotation, eps)
    return cast("tuple[Tensor, Tensor, Tensor]", parts)


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
        rotated = _rotate(normed * weights, rotation).to(qkv.dtype)
        return rotated[:, :, 0], rotated[:, :, 1], qkv[:, :, 2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        normed, inverse, weights, rotation = ctx.saved_tensors
        grad = torch.stack((grad_q, grad_k, grad_v), dim=2)
        turned = _rotate(_widen(grad[:, :, :2]), rotation, back=True)
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


def _rotate(x: Tensor, rotation: Tensor, back: bool = False) -> Tensor:
    pairs = x.view(*x.shape[:-1], -1, 2)
    if torch.compiler.is_compiling():  # the compiler leaves complex numbers to kernels of their own, which read memory again
        (first, second), (cosine, sine) = pairs.unbind(-1), rotation.unbind(-1)
        sine = -sine if back else sine
        return torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1).flatten(-2)
    turn = torch.view_as_complex(rotation)
    return torch.view_as_real(torch.view_as_complex(pairs) * (turn.conj() if back else turn)).flatten(-2)
