import math

import numpy as np
import pytest
import torch

from sfd_core.diffusion.loss import LossWeights, flow_loss, repa_loss, velocity_errors
from sfd_core.diffusion.schedule import Active, Schedule

N, TEXTURE, SEMANTIC, SIDE = 6, 3, 2, 4
PLAIN = LossWeights(semantic=2.0, cosine=1.0)


def pair(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    prediction, target = torch.randn(2, N, TEXTURE + SEMANTIC, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(dtype)
    return prediction, target


def test_terms_agree_with_sums_written_out() -> None:
    prediction, target = pair()
    terms = flow_loss(prediction, target, TEXTURE, LossWeights(semantic=2.0, cosine=0.5))
    squares = cosines = 0.0
    for n in range(N):
        for i in range(SIDE):
            for j in range(SIDE):
                p, q = prediction[n, :, i, j].tolist(), target[n, :, i, j].tolist()
                squares += sum((2.0 if c >= TEXTURE else 1.0) * (p[c] - q[c]) ** 2 for c in range(len(p)))
                dot = sum(a * b for a, b in zip(p, q, strict=True))
                cosines += 1 - dot / (math.hypot(*p) * math.hypot(*q))
    assert terms.mse.item() == pytest.approx(squares / prediction.numel(), rel=1e-5)
    assert terms.cosine.item() == pytest.approx(cosines / (N * SIDE * SIDE), rel=1e-5)
    assert terms.total.item() == pytest.approx(terms.mse.item() + 0.5 * terms.cosine.item(), rel=1e-6)
    assert terms.named()["loss"] is terms.total


def test_beta_weighs_the_squared_error_of_semantics_only() -> None:
    prediction, target = pair()
    base, doubled = (flow_loss(prediction, target, TEXTURE, LossWeights(beta, 0.0)).mse for beta in (1.0, 2.0))
    semantic = (prediction - target)[:, TEXTURE:].square().sum() / target.numel()
    assert torch.allclose(doubled - base, semantic)
    alone = flow_loss(prediction[:, :TEXTURE], target[:, :TEXTURE], TEXTURE, PLAIN)
    assert torch.allclose(alone.mse, (prediction - target)[:, :TEXTURE].square().mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_is_computed_in_float32_inside_and_outside_autocast(dtype: torch.dtype) -> None:
    prediction, target = pair(dtype)
    expected = flow_loss(prediction.float(), target.float(), TEXTURE, PLAIN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = flow_loss(prediction, target, TEXTURE, PLAIN)
    assert all(term.dtype == torch.float32 for term in terms.named().values())
    assert torch.equal(terms.total, expected.total)


def test_masking_leaves_out_the_clamped_part_and_nothing_else() -> None:
    prediction, target = pair()
    prediction.requires_grad_()
    u = torch.tensor([0.1, 0.5, 1.1, 0.29, 1.0, 0.3])
    terms = flow_loss(prediction, target, TEXTURE, PLAIN, active=Schedule.offset(0.3).active(u))
    (gradient,) = torch.autograd.grad(terms.total, prediction)
    texture, semantic = gradient[:, :TEXTURE].abs().amax((1, 2, 3)), gradient[:, TEXTURE:].abs().amax((1, 2, 3))
    assert (texture > 0).tolist() == [False, True, True, False, True, True]
    assert (semantic > 0).tolist() == [True, True, False, True, False, True]
    # the part that is left keeps the weight it has unmasked
    only = Active(texture=torch.ones(N, dtype=torch.bool), semantic=torch.zeros(N, dtype=torch.bool))
    kept = flow_loss(prediction, target, TEXTURE, PLAIN, active=only)
    assert torch.allclose(kept.mse, flow_loss(prediction, target, TEXTURE, LossWeights(0.0, 1.0)).mse)
    alone = flow_loss(prediction[:, :TEXTURE], target[:, :TEXTURE], TEXTURE, PLAIN)
    assert torch.allclose(kept.cosine, alone.cosine)


def test_masking_nothing_is_no_masking() -> None:
    prediction, target = pair()
    everything = Schedule.offset(0.0).active(torch.linspace(0.1, 0.9, N))
    assert torch.equal(
        flow_loss(prediction, target, TEXTURE, PLAIN, active=everything).total,
        flow_loss(prediction, target, TEXTURE, PLAIN).total,
    )


@pytest.mark.parametrize("cosine", [0.0, 1.0])
def test_repa_is_never_dropped_in_silence(cosine: float) -> None:
    prediction, target = pair()
    weights = LossWeights(semantic=2.0, cosine=cosine, repa=0.5)
    with pytest.raises(ValueError, match="REPA"):
        flow_loss(prediction, target, TEXTURE, weights)
    repa = torch.tensor(3.0)
    with_repa = flow_loss(prediction, target, TEXTURE, weights, repa=repa)
    without = flow_loss(prediction, target, TEXTURE, LossWeights(2.0, cosine))
    assert with_repa.repa == repa
    assert torch.allclose(with_repa.total, without.total + 1.5)


@pytest.mark.parametrize("shape", [(N, 6, SIDE, SIDE), (N, 7, 2, 2), (1, 7, SIDE, SIDE)])
def test_repa_refuses_shapes_that_do_not_match(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="aligned"):
        repa_loss(torch.zeros(shape), torch.zeros(N, 7, SIDE, SIDE), "cosine")


def test_shapes_are_not_broadcast() -> None:
    prediction, target = pair()
    with pytest.raises(ValueError, match="shape"):
        flow_loss(prediction[:, :1], target, TEXTURE, PLAIN)


def test_repa_is_the_mean_over_tokens_written_out() -> None:
    tokens, projected = torch.randn(2, 3, 7, 2, 2, generator=torch.Generator().manual_seed(2))
    cosines = squares = 0.0
    for n in range(3):
        for token in range(4):
            p, q = (values[n, :, token // 2, token % 2].tolist() for values in (projected, tokens))
            dot = sum(a * b for a, b in zip(p, q, strict=True))
            cosines += 1 - dot / (math.hypot(*p) * math.hypot(*q))
            squares += sum((a - b) ** 2 for a, b in zip(p, q, strict=True))
    assert repa_loss(projected, tokens, "cosine").item() == pytest.approx(cosines / 12, rel=1e-5)
    assert repa_loss(projected, tokens, "cosine+mse").item() == pytest.approx((cosines / 12 + squares / 84) / 2, rel=1e-5)


def test_repa_is_computed_in_float32() -> None:
    tokens = torch.randn(3, 7, 4, 4, generator=torch.Generator().manual_seed(2)).half()
    projected = torch.randn(3, 7, 4, 4, generator=torch.Generator().manual_seed(3)).half()
    exact = repa_loss(projected.float(), tokens.float(), "cosine+mse")
    assert torch.equal(repa_loss(projected, tokens, "cosine+mse"), exact)
    prediction, target = pair()
    terms = flow_loss(prediction, target, TEXTURE, LossWeights(2.0, 1.0, repa=0.3), repa=exact.half())
    plain = flow_loss(prediction, target, TEXTURE, PLAIN)
    assert terms.repa.dtype == torch.float32
    assert terms.total.item() == pytest.approx(plain.total.item() + 0.3 * exact.half().item(), rel=1e-6)


def test_without_a_weight_repa_is_measured_and_adds_nothing() -> None:
    prediction, target = pair()
    terms = flow_loss(prediction, target, TEXTURE, PLAIN, repa=torch.tensor(3.0))
    assert terms.repa == 3.0
    assert torch.equal(terms.total, flow_loss(prediction, target, TEXTURE, PLAIN).total)


@pytest.mark.parametrize("channels", [TEXTURE, TEXTURE + SEMANTIC])
def test_the_error_of_an_image_is_the_mean_over_each_part_in_float64(channels: int) -> None:
    prediction, target = (values[:, :channels] for values in pair(torch.float16))
    squared = (prediction.double() - target.double()).square().numpy()
    parts = [part for part in (squared[:, :TEXTURE], squared[:, TEXTURE:]) if part.shape[1]]
    found = velocity_errors(prediction, target, TEXTURE)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, np.stack([part.reshape(N, -1).mean(1) for part in parts], axis=1), rtol=1e-12)
