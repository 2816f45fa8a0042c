"""The optimiser and its learning rate, a pure function of the step so that a resumed run needs no scheduler state."""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfd_core.experiment.params import Optimisation
from sfd_core.host.errors import ConfigError

_HIDDEN = re.compile(r"blocks\.\d+\.(?!adaLN_)")


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


class Muon(torch.optim.Muon):
    """torch's Muon, with float32 on a CPU: there bfloat16 takes twenty times as long, ten times as long as a small network."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update the weights from their gradients, scaled to the size of AdamW's updates (arXiv 2502.16982, eq. 4)."""
        for group in self.param_groups:
            for weight in group["params"]:
                buffer = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                update = _orthogonal(weight.grad.lerp(buffer, group["momentum"]), group["ns_coefficients"], group["ns_steps"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(weight.shape)))


class WeightOptimizer:
    """AdamW over the trainable parameters `named`, or Muon for the hidden matrices and AdamW for the rest, as one optimiser.

    Hidden matrices are the 2-D weights of transformer blocks but for those of adaLN, whose gradients are one row an image and
    which would be a third of Muon's work. AdamW's fused kernel is a third of the foreach one's time at a
    million parameters on a CPU. Muon (K. Jordan and others 2024, torch.optim.Muon) orthogonalises each update; scaled to the
    size of AdamW's, it takes the same learning rate. Raises `ConfigError` if Muon finds no hidden matrix.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], learning_rate: float, optimisation: Optimisation) -> None:
        self.named = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        decay, betas = optimisation.weight_decay, (optimisation.betas[0], optimisation.betas[1])
        muon = optimisation.optimizer == "muon"
        matrices = [value for name, value in self.named.items() if muon and value.dim() == 2 and _HIDDEN.search(name)]
        if muon and not matrices:
            raise ConfigError("optimizer is muon, but this network has no blocks with 2-D weights; set it to adamw")
        chosen = set(matrices)
        rest = [parameter for parameter in self.named.values() if parameter not in chosen]
        self.adamw = torch.optim.AdamW(rest, lr=learning_rate, betas=betas, weight_decay=decay, fused=True)
        self.muon = Muon(matrices, lr=learning_rate, weight_decay=decay) if matrices else None

    @property
    def learning_rate(self) -> float:
        """The rate of the next step; setting it sets all."""
        return float(self.adamw.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        for part in self._parts():
            part.param_groups[0]["lr"] = rate

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self._parts():
            part.zero_grad(set_to_none=True)

    def step(self, finite: Tensor) -> None:
        """Update the weights; where `finite` (a boolean scalar) is false, everything stays as it is."""
        # the fused kernel itself leaves all as it is; Muon's has to be asked beforehand, which waits for the device
        self.adamw.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.adamw.step()
        if self.muon is not None and bool(finite):
            self.muon.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return the state, the tensors themselves, as `<quantity>.<parameter>`; before the first step it is zero."""
        names = {parameter: name for name, parameter in self.named.items()}
        found: dict[str, Tensor] = {}
        for part in self._parts():
            for parameter in part.param_groups[0]["params"]:
                if not part.state[parameter]:
                    part.state[parameter].update(_first_state(part, parameter))
                found |= {f"{quantity}.{names[parameter]}": value for quantity, value in part.state[parameter].items()}
        return found

    def _parts(self) -> list[torch.optim.Optimizer]:
        return [self.adamw] if self.muon is None else [self.adamw, self.muon]


def _orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Return the orthogonal factor of a matrix, roughly, by Newton-Schulz iterations (K. Jordan and others 2024)."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = (x / x.norm().clamp(min=1e-7)).to(torch.float32 if x.device.type == "cpu" else torch.bfloat16)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrix)


def _first_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    quantities = ("momentum_buffer",) if isinstance(optimizer, torch.optim.Muon) else ("exp_avg", "exp_avg_sq")
    state = {name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in quantities}
    if isinstance(optimizer, torch.optim.AdamW):
        state = {"step": torch.zeros((), dtype=torch.float32, device=parameter.device)} | state
    return state
