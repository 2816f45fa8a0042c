import math
from typing import Literal

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from sfd_core.diffusion.gaussian import GaussianProcess
from sfd_core.diffusion.gaussian_sampler import DenoiseFn, guide_denoiser, sample_gaussian
from sfd_core.experiment.params import GuidanceParams
from sfd_core.host.errors import ConfigError
from sfd_core.host.seeding import sample_noise

N, C, SIDE = 6, 3, 4
SHAPE = (C, SIDE, SIDE)


def draws(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, N, *SHAPE, generator=torch.Generator().manual_seed(seed))


def network(x: Tensor, level: int) -> Tensor:
    """Some smooth network: epsilon, and a position in the variance range between -1 and 1."""
    time = level / 1000
    return torch.cat([0.9 * (x + time).tanh(), (x - time).sin()], dim=1)


def no_noise(step: int) -> Tensor:
    raise AssertionError("a deterministic step asked for noise")


def knows(data: Tensor, process: GaussianProcess) -> DenoiseFn:
    """The ideal network for a data set of one image."""
    table = dict(zip(process.levels, process.alpha_bar.tolist(), strict=True))

    def denoise(x: Tensor, level: int) -> Tensor:
        alpha_bar = torch.tensor(table[level])
        epsilon = (x - alpha_bar.sqrt() * data) / (1 - alpha_bar).sqrt()
        return torch.cat([epsilon, -torch.ones_like(x)], dim=1)

    return denoise


def test_levels_are_dits() -> None:
    process = GaussianProcess()
    assert process.beta[0].item() == pytest.approx(1e-4)
    assert process.beta[-1].item() == pytest.approx(0.02)
    assert process.alpha_bar[-1].item() == pytest.approx(4.0358e-5, rel=1e-3)
    reference = DDPMScheduler(1000, 1e-4, 0.02, "linear")
    assert torch.allclose(process.alpha_bar.float(), reference.alphas_cumprod, rtol=1e-4, atol=1e-9)


def test_noise_is_added_as_diffusers_adds_it_and_taken_off_again() -> None:
    data, noise = draws(2)
    process, steps = GaussianProcess(), torch.tensor([0, 1, 10, 300, 700, 999])
    x = process.add_noise(data, noise, steps)
    assert torch.allclose(x, DDPMScheduler(1000, 1e-4, 0.02, "linear").add_noise(data, noise, steps), atol=1e-4)
    assert torch.allclose(process.predict_data(x.double(), noise.double(), steps), data.double(), atol=1e-3)
    assert torch.allclose(process.add_noise(data, noise, torch.full((N,), 999)), noise, atol=0.03)


def test_posterior_is_the_product_of_its_two_gaussians() -> None:
    data, x = draws(2).double()
    process = GaussianProcess().respaced(50)
    for step in (1, 5, 30, 49):
        steps = torch.full((N,), step)
        posterior = process.posterior(data, x, steps)
        below, beta = process.alpha_bar_below[step], process.beta[step]
        precision = 1 / (1 - below) + (1 - beta) / beta
        mean = (below.sqrt() * data / (1 - below) + (1 - beta).sqrt() * x / beta) / precision
        assert torch.allclose(posterior.mean, mean)
        assert torch.allclose(posterior.log_variance.exp(), 1 / precision)


@pytest.mark.parametrize(("position", "name"), [(-1.0, "smallest"), (1.0, "largest"), (0.0, "middle")])
def test_the_variance_lies_in_the_learned_range(position: float, name: str) -> None:
    process, (x, epsilon) = GaussianProcess(), draws(2)
    steps = torch.tensor([1, 2, 10, 300, 700, 999])
    output = torch.cat([epsilon, torch.full_like(x, position)], dim=1)
    log_variance = process.reverse(output, x, steps).log_variance[:, 0, 0, 0].double()
    alpha_bar, below = process.alpha_bar[steps], process.alpha_bar[steps - 1]
    large = (1 - alpha_bar / below).log()
    small = large + ((1 - below) / (1 - alpha_bar)).log()
    expected = {"smallest": small, "largest": large, "middle": (small + large) / 2}[name]
    assert torch.allclose(log_variance, expected, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 10, 28, 250])
def test_ancestral_sampling_agrees_with_diffusers_learned_range(steps: int) -> None:
    noise = draws(1)[0]
    process = GaussianProcess().respaced(steps)
    scheduler = DDPMScheduler(1000, 1e-4, 0.02, "linear", variance_type="learned_range", clip_sample=False)
    scheduler.set_timesteps(timesteps=list(reversed(process.levels)))
    generator = torch.Generator().manual_seed(4)
    expected = noise
    for level in scheduler.timesteps:
        output = network(expected, int(level))
        expected = scheduler.step(output, level, expected, generator=generator).prev_sample
    same = torch.Generator().manual_seed(4)
    solution = sample_gaussian(network, noise, "ddpm", steps, lambda step: torch.randn(noise.shape, generator=same))
    assert solution.evaluations == steps
    # diffusers keeps the levels in float32, where a small beta has three good digits
    assert torch.allclose(solution.x, expected, rtol=5e-3, atol=5e-3)


def test_ddim_agrees_with_diffusers_where_its_steps_are_right() -> None:
    noise = draws(1)[0]
    scheduler = DDIMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=False)
    scheduler.set_timesteps(1000)
    expected = noise
    for level in scheduler.timesteps:
        epsilon = network(expected, int(level)).chunk(2, dim=1)[0]
        expected = scheduler.step(epsilon, level, expected).prev_sample
    assert torch.allclose(sample_gaussian(network, noise, "ddim", 1000, no_noise).x, expected, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("steps", [1, 2, 7, 40, 250, 999, 1000])
def test_respaced_levels_run_from_first_to_last(steps: int) -> None:
    process = GaussianProcess().respaced(steps)
    assert len(set(process.levels)) == steps
    assert list(process.levels) == sorted(process.levels)
    assert process.levels[-1] == 999
    assert steps == 1 or process.levels[0] == 0
    assert torch.allclose((1 - process.beta).cumprod(0), process.alpha_bar)
    told = process.model_levels(torch.arange(steps))
    assert told.tolist() == list(process.levels)


@pytest.mark.parametrize("steps", [0, 1001])
def test_more_steps_than_levels_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match="noise levels"):
        sample_gaussian(network, draws(1)[0], "ddim", steps, no_noise)


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_a_network_that_knows_the_data_finds_it(solver: Literal["ddpm", "ddim"], steps: int) -> None:
    data, noise = draws(2)
    solution = sample_gaussian(knows(data, GaussianProcess()), noise, solver, steps, lambda step: draws(1, seed=step)[0])
    assert torch.allclose(solution.x, data, atol=2e-4 if solver == "ddim" else 0.05)


@pytest.mark.parametrize(("solver", "position"), [("ddim", 0.0), ("ddpm", 1.0), ("ddpm", -1.0)])
def test_samples_of_a_normal_distribution_have_its_mean_and_deviation(solver: Literal["ddpm", "ddim"], position: float) -> None:
    mean, deviation, process = 0.7, 0.5, GaussianProcess()

    def ideal(x: Tensor, level: int) -> Tensor:
        alpha_bar = process.alpha_bar[level].float()
        spread = alpha_bar * deviation**2 + 1 - alpha_bar
        epsilon = (1 - alpha_bar).sqrt() * (x - alpha_bar.sqrt() * mean) / spread
        return torch.cat([epsilon, torch.full_like(x, position)], dim=1)

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, 1, 2, 2, generator=generator)
    x = sample_gaussian(ideal, noise, solver, 200, lambda step: torch.randn(noise.shape, generator=generator)).x
    assert x.mean().item() == pytest.approx(mean, abs=0.03)
    assert x.std().item() == pytest.approx(deviation, abs=0.03)


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_image_i_depends_on_its_own_noise_only(solver: Literal["ddpm", "ddim"]) -> None:
    def sample(indices: list[int]) -> Tensor:
        noise = sample_noise(0, indices, SHAPE)
        return sample_gaussian(network, noise, solver, 12, lambda step: sample_noise(0, indices, SHAPE, f"step {step}")).x

    together = sample([0, 1, 2, 3])
    for row, index in enumerate([0, 1, 2, 3]):
        assert torch.equal(sample([index])[0], together[row])
    assert torch.equal(sample([2, 9])[0], together[2])


def test_observers_see_all_steps_and_the_predicted_data() -> None:
    data, noise = draws(2)
    seen: list[tuple[float, Tensor, Tensor]] = []
    denoise = knows(data, GaussianProcess())
    solution = sample_gaussian(denoise, noise, "ddim", 8, no_noise, lambda *observed: seen.append(observed))
    times, states, predictions = zip(*seen, strict=True)
    assert list(times) == [k / 8 for k in range(9)]
    assert torch.equal(states[0], noise)
    assert all(torch.allclose(predicted, data, atol=1e-3) for predicted in predictions)
    assert torch.equal(states[-1], solution.x)
    assert torch.equal(predictions[-1], solution.x)


def test_the_loss_of_the_true_posterior_is_zero() -> None:
    data, noise = draws(2)
    output = torch.cat([noise, -torch.ones_like(noise)], dim=1)
    terms = GaussianProcess().hybrid_loss(output, data, noise, torch.tensor([1, 2, 10, 300, 700, 999]))
    assert terms.mse == 0
    assert terms.vlb.item() == pytest.approx(0, abs=1e-5)


def test_terms_agree_with_torchs_distributions() -> None:
    data, noise, epsilon, position = draws(4)
    process, steps = GaussianProcess(), torch.tensor([1, 2, 10, 300, 700, 999])
    terms = process.hybrid_loss(torch.cat([epsilon, position], dim=1), data, noise, steps)
    x = process.add_noise(data, noise, steps)
    truth = process.posterior(data, x, steps)
    model = process.reverse(torch.cat([epsilon, position], dim=1), x, steps)
    divergence = kl_divergence(
        Normal(truth.mean, (truth.log_variance / 2).exp()), Normal(model.mean, (model.log_variance / 2).exp())
    )
    assert terms.vlb.item() == pytest.approx(divergence.mean().item() / math.log(2), rel=1e-3)
    assert terms.mse.item() == pytest.approx((epsilon - noise).square().mean().item())
    assert terms.total == terms.mse + terms.vlb == terms.named()["loss"]


def test_level_zero_is_scored_as_8_bit_values() -> None:
    process, values = GaussianProcess(), torch.linspace(-1, 1, 256).double()
    data = values.float()[:, None, None, None]
    steps, noise = torch.zeros(256, dtype=torch.long), torch.randn(data.shape, generator=torch.Generator().manual_seed(0))
    output = torch.cat([noise, torch.zeros_like(noise)], dim=1)
    model = process.reverse(output, process.add_noise(data, noise, steps), steps)
    normal = Normal(model.mean.flatten().double(), (model.log_variance / 2).exp().flatten().double())
    # bins of 1/255 to either side tile the line; the first and the last reach to infinity
    upper, lower = normal.cdf(values + 1 / 255), normal.cdf(values - 1 / 255)
    upper[-1], lower[0] = 1.0, 0.0
    expected = -(upper - lower).log2().mean().item()
    assert process.hybrid_loss(output, data, noise, steps).vlb.item() == pytest.approx(expected, rel=1e-3)


def test_the_variance_term_trains_the_variance_alone() -> None:
    data, noise, epsilon, position = draws(4)
    output = torch.cat([epsilon, position], dim=1).requires_grad_()
    terms = GaussianProcess().hybrid_loss(output, data, noise, torch.tensor([0, 2, 10, 300, 700, 999]))
    (of_vlb,) = torch.autograd.grad(terms.vlb, output, retain_graph=True)
    (of_mse,) = torch.autograd.grad(terms.mse, output)
    assert bool((of_vlb[:, :C] == 0).all())
    assert bool((of_vlb[:, C:] != 0).any())
    assert bool((of_mse[:, C:] == 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_is_computed_in_float32(dtype: torch.dtype) -> None:
    data, noise, epsilon, position = draws(4)
    output = torch.cat([epsilon, position], dim=1).to(dtype)
    steps = torch.tensor([0, 2, 10, 300, 700, 999])
    expected = GaussianProcess().hybrid_loss(output.float(), data, noise, steps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = GaussianProcess().hybrid_loss(output, data, noise, steps)
    assert all(
        torch.equal(a, b) and a.dtype == torch.float32
        for a, b in zip(terms.named().values(), expected.named().values(), strict=True)
    )
    assert bool(torch.isfinite(terms.total))


def test_training_steps_are_uniform_and_repeatable() -> None:
    process = GaussianProcess()
    steps = process.sample_steps(100_000, torch.Generator().manual_seed(0))
    assert torch.equal(steps, process.sample_steps(100_000, torch.Generator().manual_seed(0)))
    assert (steps.min().item(), steps.max().item()) == (0, 999)
    assert steps.double().mean().item() == pytest.approx(499.5, abs=4)


def test_the_smallest_variance_of_the_first_level_is_that_of_the_second() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    left = np.cumprod(1 - betas)
    second = math.log(betas[1] * (1 - left[0]) / (1 - left[1]))
    found = GaussianProcess().posterior_log_variance
    assert found[:2].tolist() == pytest.approx([second, second], rel=1e-9)
    assert found[2].item() == pytest.approx(math.log(betas[2] * (1 - left[1]) / (1 - left[2])), rel=1e-9)
    alone = GaussianProcess().respaced(1)
    assert alone.posterior_log_variance.tolist() == pytest.approx([math.log(1 - left[999])], rel=1e-9)


def test_the_loss_of_data_that_cannot_be_is_large_but_finite() -> None:
    data, noise = draws(2)
    data = data.clamp(-0.9, 0.9)
    output = torch.cat([noise + 1e4, torch.zeros_like(noise)], dim=1)
    vlb = GaussianProcess().hybrid_loss(output, data, noise, torch.zeros(N, dtype=torch.long)).vlb
    assert vlb.item() == pytest.approx(12 * math.log2(10), rel=1e-4)


def test_noise_of_a_step_is_asked_by_its_number_and_not_for_the_last() -> None:
    asked: list[int] = []

    def step_noise(step: int) -> Tensor:
        asked.append(step)
        return torch.zeros(N, *SHAPE)

    sample_gaussian(network, draws(1)[0], "ddpm", 4, step_noise)
    assert asked == [0, 1, 2]


@pytest.mark.parametrize(
    ("scale", "interval", "inside", "outside"),
    [
        (2.0, (0.0, 1.0), (0, 500, 999), ()),
        (2.0, (0.5, 1.0), (0, 499), (500, 999)),
        (2.0, (0.0, 0.5), (500, 999), (0, 499)),
        (2.0, (0.2, 0.8), (400, 600), (0, 50, 900, 999)),
        (2.0, (0.999, 1.0), (0,), (1,)),
        (1.0, (0.0, 1.0), (), (0, 500, 999)),
    ],
)
def test_guidance_moves_epsilon_within_an_interval_from_the_last_level_to_the_first_and_never_the_variance(
    scale: float, interval: tuple[float, float], inside: tuple[int, ...], outside: tuple[int, ...]
) -> None:
    x = draws(1)[0]
    asked: list[int] = []

    def both(x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        asked.append(level)
        return network(x, level), network(-x, level)

    guided = guide_denoiser(network, both, GuidanceParams(scale=scale, interval=list(interval)))
    for level in inside:
        found, main, reference = guided(x, level), network(x, level), network(-x, level)
        assert torch.allclose(found[:, :C], 2 * main[:, :C] - reference[:, :C], atol=1e-6)
        assert torch.equal(found[:, C:], main[:, C:])
    for level in outside:
        assert torch.equal(guided(x, level), network(x, level))
    assert asked == list(inside)
