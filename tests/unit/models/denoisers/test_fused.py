"""The written-out gradients equal autograd's through the plain formulas."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sfd_core.models.denoisers import fused
from sfd_core.models.denoisers.layers import RotaryEmbedding

EPS = 1e-6


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def plain_modulated(x: Tensor, weight: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, EPS) * (1 + scale) + shift


def plain_rotated(qkv: Tensor, weights: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    cos, sin = rotation[:, 0].unbind(-1)
    turned = []
    for x, weight in ((qkv[:, :, 0], weights[0, 0]), (qkv[:, :, 1], weights[1, 0])):
        normed = F.rms_norm(x, x.shape[-1:], weight, EPS)
        first, second = normed[..., ::2], normed[..., 1::2]
        turned.append(torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1).flatten(-2))
    return turned[0], turned[1], qkv[:, :, 2]


def test_modulated_rms_norm_is_the_plain_formula() -> None:
    inputs = (randn(2, 3, 8), randn(8, seed=1), randn(2, 1, 8, seed=2), randn(2, 1, 8, seed=3))
    torch.testing.assert_close(fused.modulated_rms_norm(*inputs, EPS), plain_modulated(*inputs))
    assert torch.autograd.gradcheck(lambda *args: fused.modulated_rms_norm(*args, EPS), inputs)


def test_normalise_and_rotate_is_the_plain_formula() -> None:
    rotation = RotaryEmbedding(head_width=4, grid=2).rotation().double()
    inputs = (randn(2, 4, 3, 2, 4), randn(2, 1, 4, seed=1))
    for mine, plain in zip(fused.normalise_and_rotate(*inputs, rotation, EPS), plain_rotated(*inputs, rotation), strict=True):
        torch.testing.assert_close(mine, plain)
    assert torch.autograd.gradcheck(lambda *args: fused.normalise_and_rotate(*args, rotation, EPS), inputs)


def test_compiled_the_plain_formulas_take_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    rotation = RotaryEmbedding(head_width=4, grid=2).rotation().double()
    norm = (randn(2, 3, 8), randn(8, seed=1), randn(2, 1, 8, seed=2), randn(2, 1, 8, seed=3))
    turn = (randn(2, 4, 3, 2, 4), randn(2, 1, 4, seed=1))

    def results() -> list[Tensor]:
        outputs = [fused.modulated_rms_norm(*norm, EPS), *fused.normalise_and_rotate(*turn, rotation, EPS)]
        cotangents = [randn(*output.shape, seed=7) for output in outputs]
        return [*outputs, *torch.autograd.grad(outputs, [*norm, *turn], cotangents)]

    written = results()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.delattr(fused, "_ModulatedRMSNorm")
    monkeypatch.delattr(fused, "_NormaliseAndRotate")
    torch.testing.assert_close(results(), written)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_normalised_in_float32(dtype: torch.dtype) -> None:
    x = (1e-3 * randn(2, 4, 8, dtype=torch.float32)).to(dtype).detach().requires_grad_()
    ones, zeros = torch.ones(8), torch.zeros(2, 1, 8)
    out = fused.modulated_rms_norm(x, ones, zeros, zeros, EPS)
    # squares of 1e-3 vanish in float16; the result has a unit root mean square only if they did not
    expected = F.rms_norm(x.float(), (8,), ones, EPS)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_queries_and_keys_keep_their_precision() -> None:
    rotation = RotaryEmbedding(head_width=4, grid=2).rotation()
    qkv = randn(2, 4, 3, 2, 4, dtype=torch.float32).to(torch.bfloat16)
    assert {part.dtype for part in fused.normalise_and_rotate(qkv, torch.ones(2, 1, 4), rotation, EPS)} == {torch.bfloat16}
