"""Averages of any width after the training (Karras et al., arXiv 2312.02696, section 3 and appendix C).

A power-function average weights step tau of T by tau^gamma; its width sigma is the standard deviation of that weight over T. A
training stores averages of a few widths at its snapshots; any other width at any step is then their least-squares combination
with a sum of one, so that what never changes, such as positions, stays what it is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.paths import atomic_path
from sfd_core.training.ema import EMA

AVERAGES = "averages"
"""Folder of the stored averages, beside snapshots."""
CELLS = 20_000
"""Most pieces of a training over which weights are compared; a longer one is summed over equal pieces."""
_FILE = re.compile(r"step-(\d{8})-(\d\.\d+)\.safetensors")


def exponent(sigma: float) -> float:
    """Return gamma of a relative width `sigma`. Raises `ConfigError` unless 0 < sigma < 0.288, where gamma is positive."""
    if not 0 < sigma < 12**-0.5:
        raise ConfigError(f"an average of width {sigma} has no power function; choose more than 0 and less than 0.288")
    return float(np.roots([1, 7, 16 - sigma**-2, 12 - sigma**-2]).real.max())


class PowerEMA(EMA):
    """An average that weights step tau by tau^gamma, of relative width `sigma`."""

    def __init__(self, model: nn.Module, sigma: float) -> None:
        super().__init__(model, decay=1.0, warmup=False)
        self.gamma = exponent(sigma)

    @property
    def current_decay(self) -> float:
        """The decay of the next update, (1 - 1 / t)^(gamma + 1)."""
        return float((1 - 1 / (self.updates + 1)) ** (self.gamma + 1))


class Averages:
    """The average that is evaluated, and others, by width, that are only stored."""

    def __init__(self, main: EMA, stored: Mapping[float, PowerEMA]) -> None:
        self.main, self.stored = main, stored
        self._all = {"main.": main, **{f"{sigma}.": average for sigma, average in stored.items()}}

    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        for average in self._all.values():
            average.update(model)

    def restart(self, model: nn.Module) -> None:
        """Begin anew from the weights as they are now."""
        for average in self._all.values():
            average.restart(model)

    def weights(self) -> dict[str, Tensor]:
        """Return those of the average that is evaluated."""
        return self.main.weights()

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that a resumed run needs, as flat tensors."""
        return {before + name: value for before, average in self._all.items() for name, value in average.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for before, average in self._all.items():
            average.load_state_dict({name.removeprefix(before): state[name] for name in state if name.startswith(before)})

    def save(self, step: int, folder: Path) -> None:
        """Write the stored averages after `step` steps."""
        for sigma, average in self.stored.items():
            with atomic_path(folder / f"step-{step:08d}-{sigma}.safetensors") as temporary:
                save_file({name: value.detach().cpu().contiguous() for name, value in average.weights().items()}, temporary)


@dataclass(frozen=True)
class StoredAverage:
    """A file of `Averages.save`."""

    step: int
    sigma: float
    path: Path

    @classmethod
    def all_in(cls, folder: Path) -> list[Self]:
        """Return those in a folder, by step. Raises `DataError` if there are none."""
        named = [(_FILE.fullmatch(path.name), path) for path in sorted(folder.glob("*.safetensors"))]
        found = [cls(int(match[1]), float(match[2]), path) for match, path in named if match]
        if not found:
            raise DataError(f"{folder} holds no averages; train with train.power_emas, such as [0.05, 0.1]")
        return found


def reconstruct(averages: Sequence[StoredAverage], sigma: float, step: int) -> tuple[dict[str, Tensor], float]:
    """Return the weights of the average of width `sigma` after `step` steps, float32, and how well it is matched.

    The match is the relative distance between the weights that steps have in the combination and in the average: 0 is exact.
    Raises `ConfigError` for an impossible width, or a step after the last.
    """
    known = [average for average in averages if average.step <= step]
    if not known or step > max(average.step for average in averages):
        steps = ", ".join(str(step) for step in sorted({average.step for average in averages}))
        raise ConfigError(f"there is no average of step {step}; choose one between those of {steps}")
    edges = np.linspace(0, step, min(step, CELLS) + 1)
    profiles = np.stack([_profile(edges, average.sigma, average.step) for average in known], axis=1)
    wanted = _profile(edges, sigma, step)
    last = profiles[:, -1]
    shares, *_ = np.linalg.lstsq(profiles[:, :-1] - last[:, None], wanted - last, rcond=None)
    shares = np.append(shares, 1 - shares.sum())
    mismatch = float(np.linalg.norm(profiles @ shares - wanted) / np.linalg.norm(wanted))
    total: dict[str, Tensor] = {}
    for average, share in zip(known, shares.tolist(), strict=True):
        for name, value in load_file(average.path).items():
            floating = value.is_floating_point()
            term = value.double() * share if floating else value
            total[name] = total[name] + term if floating and name in total else term
    return {name: value.float() if value.is_floating_point() else value for name, value in total.items()}, mismatch


def _profile(edges: NDArray[np.float64], sigma: float, steps: int) -> NDArray[np.float64]:
    """Return the weight of the steps in every cell in the average after `steps` steps, exactly."""
    reached = (np.minimum(edges, steps) / steps) ** (exponent(sigma) + 1)
    weights: NDArray[np.float64] = np.diff(reached)
    return weights


def power_averages(model: nn.Module, main: EMA, sigmas: Sequence[float], sharded: bool) -> EMA | Averages:
    """Return `main`, with averages of all `sigmas` that are only stored. Raises `ConfigError` for those of sharded weights."""
    if sigmas and sharded:
        raise ConfigError("train.power_emas needs whole weights; set engine.sharding to none, or power_emas to []")
    return Averages(main, {sigma: PowerEMA(model, sigma) for sigma in sigmas}) if sigmas else main
