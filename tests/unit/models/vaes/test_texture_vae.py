"""The texture VAE starts as a PCA of patches and keeps shapes."""

import pytest
import torch

from sfd_core.models.vaes.posterior import Posterior
from sfd_core.models.vaes.texture_vae import TextureVAE, TextureVAEShape, psnr, texture_vae_loss


@pytest.mark.parametrize("downsampling", [4, 8, 16])
def test_shapes(downsampling: int) -> None:
    vae = TextureVAE(TextureVAEShape(channels=5, downsampling=downsampling, width=8, depth=1))
    posterior = vae.encode(torch.zeros(2, 3, 32, 32))
    assert posterior.mean.shape == (2, 5, 32 // downsampling, 32 // downsampling)
    assert vae.decode(posterior.mean).shape == (2, 3, 32, 32)


def test_with_all_components_the_start_is_exact() -> None:
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = TextureVAE(TextureVAEShape(channels=48, downsampling=4, width=8, depth=1))
    vae.start_from_pca(images)
    latents = vae.encode(images).mean
    torch.testing.assert_close(vae.decode(latents), images, atol=1e-4, rtol=0)
    # whitened: every channel has mean 0 and deviation 1
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(48), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(48), atol=1e-2, rtol=0)


def test_fewer_components_lose_what_pca_loses() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(128, 3, 8, 8, generator=generator) * 2 - 1
    vae = TextureVAE(TextureVAEShape(channels=10, downsampling=4, width=8, depth=1))
    vae.start_from_pca(images)
    patches = torch.nn.functional.pixel_unshuffle(images, 4).permute(0, 2, 3, 1).flatten(0, 2)
    left = torch.linalg.svdvals(patches - patches.mean(0))[10:].square().sum() / patches.numel()
    error = (vae.decode(vae.encode(images).mean) - images).square().mean()
    torch.testing.assert_close(error, left, rtol=1e-3, atol=0)


def test_training_lowers_the_loss_and_every_weight_learns() -> None:
    torch.manual_seed(0)
    images = torch.rand(16, 3, 16, 16) * 2 - 1
    vae = TextureVAE(TextureVAEShape(channels=4, downsampling=4, width=8, depth=1))
    vae.start_from_pca(images)
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        posterior = vae.encode(images)
        terms = texture_vae_loss(images, posterior, vae.decode(posterior.mean), 1e-6)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    assert losses[-1] < 0.95 * losses[0]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in vae.parameters())


def test_the_loss_is_the_sum_of_its_terms() -> None:
    generator = torch.Generator().manual_seed(0)
    images, decoded = torch.randn(2, 5, 3, 8, 8, generator=generator)
    posterior = Posterior(torch.randn(5, 4, 2, 2, generator=generator), torch.randn(5, 4, 2, 2, generator=generator))
    terms = texture_vae_loss(images, posterior, decoded, 0.5)
    torch.testing.assert_close(terms["l1"], (images - decoded).abs().mean())
    torch.testing.assert_close(terms["mse"], (images - decoded).square().mean())
    torch.testing.assert_close(terms["kl"], posterior.kl().mean())
    torch.testing.assert_close(terms["loss"], terms["l1"] + terms["mse"] + 0.5 * terms["kl"])


def test_psnr_of_a_known_error() -> None:
    images = torch.zeros(2, 3, 4, 4)
    torch.testing.assert_close(psnr(images, images + 0.2), torch.full((2,), 20.0), rtol=1e-4, atol=0)
    assert psnr(images + 1, images + 2).isfinite().all(), "a white image whose decoded values are all clamped"
