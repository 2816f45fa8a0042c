"""AdamW and its learning rate, a pure function of the step so that a resumed run needs no scheduler state."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sfd_core.experiment.params import Optimisation


def learning_rate_at(step: int, learning_rate: float, optimisation: Optimisation) -> float:
    """Return the rate of step `step` (counted from 0): linear warm-up, constant, cosine decay over the last steps.

    The last warm-up step has the full rate and the last decay step exactly `final_rate` of it.
    """
    if step < optimisation.warmup_steps:
        return learning_rate * (step + 1) / optimisation.warmup_steps
    decay_start = optimisation.steps - optimisation.decay_steps
    if optimisation.decay_steps == 0 or step < decay_start:
        return learning_rate
    progress = min(1.0, (step - decay_start + 1) / optimisation.decay_steps)
    share = optimisation.final_rate + (1 - optimisation.final_rate) * (1 + math.cos(math.pi * progress)) / 2
    return learning_rate * share


def build_optimizer(parameters: Iterable[nn.Parameter], learning_rate: float, optimisation: Optimisation) -> torch.optim.AdamW:
    """Return AdamW over the trainable `parameters`.

    The fused kernel is a third of the foreach one's time at a million parameters on a CPU.
    """
    beta1, beta2 = optimisation.betas
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    return torch.optim.AdamW(
        trainable, lr=learning_rate, betas=(beta1, beta2), weight_decay=optimisation.weight_decay, fused=True
    )


def optimizer_tensors(optimizer: torch.optim.AdamW, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return AdamW's state, the tensors themselves, as `<quantity>.<parameter>`; before the first step it is zero."""
    for parameter in named.values():
        if not optimizer.state[parameter]:
            device = parameter.device
            moments = {
                name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in ("exp_avg", "exp_avg_sq")
            }
            optimizer.state[parameter].update({"step": torch.zeros((), dtype=torch.float32, device=device), **moments})
    return {f"{key}.{name}": value for name, parameter in named.items() for key, value in optimizer.state[parameter].items()}
