"""Sampling of DiT's process: ancestral (DDPM, arXiv 2006.11239) or deterministic (DDIM, arXiv 2010.02502), with guidance.

Shapes: N images, C channels, side H and W of the latent grid.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sfd_core.diffusion.gaussian import GaussianProcess
from sfd_core.diffusion.solver import ObserveFn, Solution
from sfd_core.experiment.params import GuidanceParams
from sfd_core.experiment.sizes import TRAINING_LEVELS

DenoiseFn = Callable[[Tensor, int], Tensor]
"""Maps x (N, C, H, W) and one training level 0..999 to (N, 2C, H, W): epsilon, then position in the variance range."""

DenoiseBothFn = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""The same, with the outputs of a main and a reference network."""

StepNoiseFn = Callable[[int], Tensor]
"""Maps a step number to standard normal noise (N, C, H, W); row k must depend only on the index of image k and the step."""


@torch.no_grad()
def sample_gaussian(
    denoise: DenoiseFn,
    noise: Tensor,
    solver: Literal["ddpm", "ddim"],
    evaluations: int,
    step_noise: StepNoiseFn,
    observe: ObserveFn | None = None,
) -> Solution:
    """Turn `noise` (N, C, H, W) into data in `evaluations` steps, one network evaluation each.

    `ddpm` samples every step from the learned distribution with `step_noise`; `ddim` (eta 0) is deterministic. `observe` gets
    the fraction of finished steps as time: 0 is noise, 1 is data. Raises `ConfigError` for more steps than noise levels.
    """
    process = GaussianProcess().respaced(evaluations)
    x = noise
    for done, step in enumerate(reversed(range(evaluations))):
        steps = torch.full((x.shape[0],), step, device=x.device)
        output = denoise(x, process.levels[step]).float()
        epsilon = output.chunk(2, dim=1)[0]
        data = process.predict_data(x, epsilon, steps)
        if observe is not None:
            observe(done / evaluations, x, data)
        if solver == "ddim":
            x = process.step_below(data, epsilon, steps)
        else:
            reverse = process.reverse(output, x, steps)
            x = reverse.mean if step == 0 else reverse.mean + (reverse.log_variance / 2).exp() * step_noise(done)
    if observe is not None:
        observe(1.0, x, x)
    return Solution(x, evaluations)


def guide_denoiser(main: DenoiseFn, both: DenoiseBothFn, guidance: GuidanceParams) -> DenoiseFn:
    """Return epsilon_ref + w (epsilon_main - epsilon_ref) and the main network's variance.

    `both` returns the outputs of the main and the reference network, which gets no class (CFG) or is weak (AutoGuidance).
    The interval is in 1 - level / 999: 0 is noise, 1 is data.
    """
    low, high = guidance.interval

    def guided(x: Tensor, level: int) -> Tensor:
        # the reference network is half the cost: skip it where it is not used
        if guidance.scale == 1 or not low <= 1 - level / (TRAINING_LEVELS - 1) <= high:
            return main(x, level)
        output, start = both(x, level)
        epsilon, position = output.chunk(2, dim=1)
        start = start.chunk(2, dim=1)[0]
        return torch.cat([start + guidance.scale * (epsilon - start), position], dim=1)

    return guided
