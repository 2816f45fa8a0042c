"""How training draws the local times of texture and semantics."""

from dataclasses import dataclass

import torch

from sfd_core.diffusion.schedule import Active, LocalTimes, Schedule
from sfd_core.experiment.params import IndependentTimes, OwnTimes, VariantParams


@dataclass(frozen=True)
class TrainingTimes(LocalTimes):
    """Local times (N,), float32, and which parts are in the loss; None: both, always."""

    active: Active | None


def draw_times(n: int, variant: VariantParams, generator: torch.Generator) -> TrainingTimes:
    """Draw the training times of `n` images as `variant.times` says; all times are logit-normal(0, 1).

    `global` (SFD, arXiv 2512.04926): one global time on the variant's path; its equation draws it uniformly, its appendix and
    code logit-normally, and this follows the latter. `own` (Latent Forcing, arXiv 2602.11401): one part is chosen and gets a
    time of its own; the other stands where the path has it then, semantics with noise on what they hand over. `independent`:
    both have times of their own, so that the network can be sampled along any path.
    """
    schedule, times = Schedule.of(variant), variant.times
    t = _logit_normal(n, generator)
    if isinstance(times, OwnTimes):
        return _own(schedule, times, t, generator)
    if isinstance(times, IndependentTimes):
        t_sem = _logit_normal(n, generator)
        if times.absent == 0:
            return TrainingTimes(t, t_sem, active=None)
        absent = torch.rand(n, generator=generator) < times.absent
        return TrainingTimes(t, t_sem.masked_fill(absent, 0), Active(torch.ones_like(absent), ~absent))
    u = t * schedule.end
    local = schedule.local_times(u)
    return TrainingTimes(local.t_tex, local.t_sem, schedule.active(u) if variant.mask_clamped else None)


def _own(schedule: Schedule, times: OwnTimes, t: torch.Tensor, generator: torch.Generator) -> TrainingTimes:
    semantic, absent, noise = (torch.rand(len(t), generator=generator) for _ in range(3))
    chosen = semantic < times.semantic_share
    u = torch.where(chosen, schedule.global_times(t, semantic=True), schedule.global_times(t, semantic=False))
    path = schedule.local_times(u)
    handed_over = (path.t_sem * (1 - times.handover_noise * noise)).masked_fill(absent < times.absent, 0)
    t_tex, t_sem = torch.where(chosen, path.t_tex, t), torch.where(chosen, t, handed_over)
    return TrainingTimes(t_tex, t_sem, Active(texture=~chosen, semantic=chosen))


def _logit_normal(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.sigmoid(torch.randn(n, generator=generator))
