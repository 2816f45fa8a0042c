import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sfd_core.models.vaes.posterior import Posterior
from sfd_core.models.vaes.semantic_vae import SemanticVAE, TokenBlock, semantic_vae_loss


def small() -> SemanticVAE:
    torch.manual_seed(0)
    return SemanticVAE(in_channels=12, channels=3, width=16, depth=2, heads=4)


def test_the_paper_s_network_has_its_published_size_and_names() -> None:
    with torch.device("meta"):
        vae = SemanticVAE(in_channels=768, channels=16, width=768, depth=4, heads=6)
    sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in (vae.encoder, vae.decoder)]
    assert [round(size / 1e6) for size in sizes] == [29, 29]
    shapes = {name: tuple(value.shape) for name, value in vae.state_dict().items()}
    assert shapes["encoder.0.weight"] == (768, 768)
    assert shapes["encoder.1.attn.in_proj_weight"] == (2304, 768)
    assert shapes["encoder.4.mlp.2.weight"] == (768, 3072)
    assert shapes["encoder.5.weight"] == (768,)
    assert shapes["encoder.6.weight"] == (32, 768)
    assert shapes["decoder.0.weight"] == (768, 16)
    assert shapes["decoder.6.weight"] == (768, 768)
    assert len(shapes) == 2 * (2 + 4 * 12 + 2 + 2)


@pytest.mark.parametrize("grid", [2, 5])
def test_any_grid_keeps_its_shape(grid: int) -> None:
    vae, tokens = small(), torch.randn(2, 12, grid, grid)
    posterior = vae.encode(tokens)
    assert posterior.mean.shape == posterior.log_variance.shape == (2, 3, grid, grid)
    assert vae.decode(posterior.mean).shape == tokens.shape


def test_positions_stay_where_they_are() -> None:
    # without positional embedding, transposing the tokens transposes the latent and nothing else
    vae, tokens = small(), torch.randn(2, 12, 4, 4)
    torch.testing.assert_close(vae.encode(tokens.mT).mean, vae.encode(tokens).mean.mT)
    z_sem = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(vae.decode(z_sem.mT), vae.decode(z_sem).mT)


def test_a_block_is_that_of_the_public_weights() -> None:
    torch.manual_seed(0)
    block, x = TokenBlock(8, 2), 3 * torch.randn(2, 5, 8)
    normed = block.norm1(x)
    y = x + block.attn(normed, normed, normed)[0]
    hidden = block.mlp[0](block.norm2(y))
    exact = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    assert torch.allclose(block(x), y + block.mlp[2](exact), atol=1e-6)


def test_training_and_evaluation_mode_agree() -> None:
    vae, tokens = small(), torch.randn(2, 12, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(vae.eval().encode(tokens).mean, vae.train().encode(tokens).mean)


def terms(reconstruction: Tensor, tokens: Tensor, kl_weight: float = 0.0, mean: float = 0.0) -> dict[str, float]:
    posterior = Posterior(torch.full((2, 3, 4, 4), mean), torch.zeros(2, 3, 4, 4))
    return {name: term.item() for name, term in semantic_vae_loss(reconstruction, tokens, posterior, kl_weight).items()}


def test_a_perfect_reconstruction_costs_its_divergence_only() -> None:
    tokens = torch.randn(2, 12, 4, 4)
    found = terms(tokens, tokens, kl_weight=0.01, mean=1.0)
    kl = 0.5 * 3 * 4 * 4  # half the squared mean, summed over the latent, averaged over images
    assert found == pytest.approx({"loss": 0.01 * kl, "mse": 0, "cosine": 0, "kl": kl}, abs=1e-6)


def test_the_cosine_is_over_features_not_over_positions() -> None:
    tokens = torch.randn(2, 12, 4, 4)
    # scaling each position by itself keeps the direction of its features, not that of a feature's positions
    scaled = tokens * torch.rand(2, 1, 4, 4).add(0.1)
    assert terms(scaled, tokens)["cosine"] == pytest.approx(0, abs=1e-6)
    assert (1 - F.cosine_similarity(scaled.flatten(2), tokens.flatten(2), dim=2).mean()).item() > 0.01


def test_the_total_is_the_sum_of_the_published_terms() -> None:
    tokens, reconstruction = torch.randn(2, 12, 4, 4), torch.randn(2, 12, 4, 4)
    found = terms(reconstruction, tokens, kl_weight=1e-3, mean=2.0)
    assert found["loss"] == pytest.approx(found["mse"] + found["cosine"] + 1e-3 * found["kl"])
    assert found["mse"] == pytest.approx((reconstruction - tokens).square().mean().item())


def test_it_learns_tokens_of_few_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(16, 3, 4, 4, generator=generator)
    tokens = torch.einsum("ck,nkhw->nchw", torch.randn(12, 3, generator=generator) / 3**0.5, factors)
    vae = small()
    optimiser = torch.optim.AdamW(vae.parameters(), lr=3e-3)
    first = last = None
    for _ in range(40):
        noise = torch.randn(16, 3, 4, 4, generator=generator)
        posterior = vae.encode(tokens)
        loss = semantic_vae_loss(vae.decode(posterior.sample(noise)), tokens, posterior, kl_weight=1e-6)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        last = loss.item()
        first = first or last
    assert last < first / 2
