"""Images a second of sampling, by size, on composite latents as the embedded preset has them."""

from collections.abc import Callable

import pytest
import torch
from emoji import emoji
from pytest_benchmark.fixture import BenchmarkFixture

from sfd_core.diffusion.schedule import LocalTimes, Schedule
from sfd_core.diffusion.solver import SolverSettings, integrate
from sfd_core.experiment.params import VariantParams
from sfd_core.host.seeding import generator
from sfd_core.models.denoisers.factory import LatentSpec, build_denoiser

pytestmark = pytest.mark.bench

PARAMS = emoji()
CLASSES = 10
LATENT = LatentSpec(PARAMS.texture_vae.channels, PARAMS.semantic_vae.channels, PARAMS.latent_grid, token_channels=112)
SCHEDULE = Schedule.offset(PARAMS.variants["sfd"].delta_t)


def variant(size: str) -> VariantParams:
    return PARAMS.variants["sfd"].model_copy(update={"size": size})


@pytest.mark.parametrize(("size", "batch"), [("tiny", 64), ("S", 16)])
def test_sampling(benchmark: BenchmarkFixture, per_second: Callable[[int], None], size: str, batch: int) -> None:
    model = build_denoiser(variant(size), LATENT, CLASSES).eval()
    noise = torch.randn(batch, LATENT.channels, LATENT.grid, LATENT.grid, generator=generator(0))
    labels = torch.arange(batch) % CLASSES
    settings = SolverSettings("euler", PARAMS.evaluate.sampler.evaluations, 1.0)

    def velocity(x: torch.Tensor, times: LocalTimes) -> torch.Tensor:
        prediction: torch.Tensor = model(x, times.t_tex, times.t_sem, labels).prediction
        return prediction

    solution = benchmark.pedantic(
        lambda: integrate(velocity, noise, SCHEDULE, LATENT.texture_channels, settings), rounds=3, warmup_rounds=1
    )
    assert solution.evaluations == settings.evaluations
    per_second(batch)
