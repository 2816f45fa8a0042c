"""A path of local times that is learned together with a denoiser, after *Learning When to Denoise* (arXiv 2606.19662).

Each part k has a progress tau_k over global time u in [0, 1], straight between knots that softmax increments keep monotone. The
loss is the integral over u of sum_k w_k(tau_k) e_k tau_k', whose weight over each part's own time stays fixed while the path
moves, plus a kinetic energy sum_k tau_k'^2, which keeps the path from jumping. The paper's own parametrisation is not public.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfd_core.diffusion.path import sample_path, velocity
from sfd_core.diffusion.schedule import LocalTimes
from sfd_core.experiment.params import LearnedSchedule
from sfd_core.models.denoisers.lightningdit import LightningDiT
from sfd_core.training.parallel import whole
from sfd_core.training.tasks.denoising import LatentBatches

CLOSEST = 1e-3
"""To a part's ends, where the logit-normal weight is zero."""


class PathLearner(nn.Module):
    """A denoiser of a composite and the increments of its path; at first both parts move together."""

    def __init__(self, denoiser: LightningDiT, knots: int) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.increments = nn.Parameter(torch.zeros(2, knots))

    def progress(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return tau and its slope (2, N), texture first, at global times u (N,) in [0, 1)."""
        steps = self.increments.softmax(dim=1)
        knots = steps.shape[1]
        place = (u * knots).clamp(max=knots - 1e-4)
        cell = place.long()
        reached = steps.cumsum(dim=1) - steps
        return reached[:, cell] + steps[:, cell] * (place - cell), steps[:, cell] * knots

    def corners(self) -> list[list[float]]:
        """Return the path (t_tex, t_sem) through all knots; every process must ask."""
        reached = whole(self.increments.detach()).double().cpu().softmax(dim=1).cumsum(dim=1)
        return [[0.0, 0.0], *reached[:, :-1].T.tolist(), [1.0, 1.0]]


class LearnedPathTask:
    """Flow matching along a path that moves to where it costs least."""

    def __init__(self, model: PathLearner, batches: LatentBatches, schedule: LearnedSchedule) -> None:
        self.model, self.batches, self.schedule = model, batches, schedule
        self.order, self.n_texture = batches.order, batches.composite.n_texture

    def batch(self, step: int, part: slice) -> Mapping[str, Tensor]:
        """Return the batch of `LatentBatches` with uniform global times `u` (n,)."""
        u = torch.rand(self.order.batch_size, generator=self.batches.generator("time", step))
        return self.batches.batch(step, part) | {"u": u[part]}

    def loss(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weighted errors of both parts, the kinetic energy, and their sum."""
        x1, x0 = batch["x1"], batch["noise"]
        tau, slope = self.model.progress(batch["u"])
        tau = tau.clamp(CLOSEST, 1 - CLOSEST)
        x_t = sample_path(x0, x1, LocalTimes(tau[0], tau[1]), self.n_texture).x_t
        squared = (self.model.denoiser(x_t, tau[0], tau[1], batch["labels"]).prediction.float() - velocity(x0, x1)).square()
        errors = torch.stack([part.mean((1, 2, 3)) for part in (squared[:, : self.n_texture], squared[:, self.n_texture :])])
        texture, semantic = (_logit_normal_density(tau) * slope * errors).mean(dim=1)
        kinetic = slope.square().sum(dim=0).mean()
        total = texture + self.schedule.semantic_weight * semantic + self.schedule.kinetic * kinetic
        return {"loss": total, "texture": texture, "semantic": semantic, "kinetic": kinetic}


def _logit_normal_density(t: Tensor) -> Tensor:
    """Return the density of the times that training draws, at times in (0, 1)."""
    return torch.exp(-t.logit().square() / 2) / (math.sqrt(2 * math.pi) * t * (1 - t))
