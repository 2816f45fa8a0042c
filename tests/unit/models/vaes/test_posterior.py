import torch

from sfd_core.models.vaes.posterior import Posterior


def test_divergence_is_that_of_independent_normals() -> None:
    mean, log_variance = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    normal = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(Posterior(mean, log_variance).kl(), expected)


def test_samples_have_the_posterior_moments() -> None:
    mean, log_variance = torch.tensor([-1.0, 2.0]), torch.tensor([0.5, -3.0])
    shape = (1, 2, 100, 100)
    posterior = Posterior(mean[None, :, None, None].expand(shape), log_variance[None, :, None, None].expand(shape))
    sample = posterior.sample(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(sample.mean((0, 2, 3)), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(sample.var((0, 2, 3)).log(), log_variance, atol=0.05, rtol=0)


def test_without_noise_a_sample_is_the_mean() -> None:
    posterior = Posterior(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))
    assert torch.equal(posterior.sample(torch.zeros(2, 3, 4, 4)), posterior.mean)


def test_moments_are_mean_then_log_variance_kept_in_range() -> None:
    moments = torch.tensor([0.0, 7.0, -1000.0, 1000.0]).view(1, 4, 1, 1)
    posterior = Posterior.from_moments(moments)
    assert posterior.mean.flatten().tolist() == [0, 7]
    assert posterior.log_variance.flatten().tolist() == [-30, 20]
    assert posterior.kl().isfinite().all()
