"""The process of DiT: 1000 discrete noise levels, epsilon prediction with learned variance, and the hybrid loss.

Level s runs from 0 (almost data) to S - 1 (almost noise); alpha_bar[s] is the fraction of the data's variance that is left.
Sources: DDPM (arXiv 2006.11239), Improved DDPM (arXiv 2102.09672), DDIM (arXiv 2010.02502), DiT (arXiv 2212.09748).

The tests compare with diffusers' schedulers, but this file does not use them. DDIMScheduler takes wrong steps if the number of
steps does not divide 1000, DDPMScheduler draws its own noise, and both lose digits of the small betas in float32. The training
loss needs the same posterior anyway.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from sfd_core.experiment.sizes import TRAINING_LEVELS
from sfd_core.host.errors import ConfigError

FIRST_BETA, LAST_BETA = 1e-4, 0.02


@dataclass(frozen=True)
class GaussianTerms:
    """The hybrid loss and its terms (scalars, float32): mse of epsilon, vlb in bits per dimension."""

    total: Tensor
    mse: Tensor
    vlb: Tensor

    def named(self) -> dict[str, Tensor]:
        """Return all terms by name, the total as `loss`."""
        return {"loss": self.total, "mse": self.mse, "vlb": self.vlb}


@dataclass(frozen=True)
class Normal:
    """Mean and log-variance (N, C, H, W) of a diagonal normal distribution."""

    mean: Tensor
    log_variance: Tensor


class _Tables(NamedTuple):
    """Functions of the level (S,) on one device."""

    level: Tensor
    signal: Tensor
    noise: Tensor
    signal_below: Tensor
    noise_below: Tensor
    of_data: Tensor
    of_x: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class GaussianProcess:
    """The noise levels in use, ascending, out of the 1000 of training; all of them by default."""

    levels: tuple[int, ...] = tuple(range(TRAINING_LEVELS))

    def respaced(self, steps: int) -> "GaussianProcess":
        """Return the process over `steps` levels evenly spaced from the first to the last (Improved DDPM, section 4).

        Raises `ConfigError` for less than 1 step or more steps than levels.
        """
        count = len(self.levels)
        if not 1 <= steps <= count:
            raise ConfigError(f"{steps} sampling steps were requested, but there are {count} noise levels; use 1 to {count}")
        # from the top, so that a single step starts at the last level, which is pure noise
        chosen = torch.linspace(count - 1, 0, steps, dtype=torch.float64).round().long()
        return GaussianProcess(tuple(self.levels[index] for index in chosen.flip(0).tolist()))

    @cached_property
    def alpha_bar(self) -> Tensor:
        """Fraction of the data variance left at each level in use (S,), float64."""
        betas = torch.linspace(FIRST_BETA, LAST_BETA, TRAINING_LEVELS, dtype=torch.float64)
        return torch.cumprod(1 - betas, dim=0)[list(self.levels)]

    @cached_property
    def alpha_bar_below(self) -> Tensor:
        """alpha_bar of the next lower level in use (S,); 1 below the first."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])

    @cached_property
    def beta(self) -> Tensor:
        """Variance added between neighbouring levels in use (S,)."""
        return 1 - self.alpha_bar / self.alpha_bar_below

    @cached_property
    def posterior_log_variance(self) -> Tensor:
        """Log of beta-tilde (S,) (DDPM, eq. 7); the first, which would be log 0, is set to the second."""
        variance = self.beta * (1 - self.alpha_bar_below) / (1 - self.alpha_bar)
        variance[0] = variance[1] if len(variance) > 1 else self.beta[0]
        return variance.log()

    def sample_steps(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw training steps (n,) uniformly, int64."""
        return torch.randint(len(self.levels), (n,), generator=generator)

    def model_levels(self, steps: Tensor) -> Tensor:
        """Return the training levels (N,), float32, that condition the network at `steps` (N,)."""
        return self._tables(torch.float32, steps.device).level[steps]

    def add_noise(self, data: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return data (N, C, H, W) at `steps` (N,): sqrt(alpha_bar) data + sqrt(1 - alpha_bar) noise (DDPM, eq. 4)."""
        tables = self._tables(data.dtype, data.device)
        return _at(tables.signal, steps) * data + _at(tables.noise, steps) * noise

    def predict_data(self, x: Tensor, epsilon: Tensor, steps: Tensor) -> Tensor:
        """Return the data predicted from `epsilon` in `x` (DDPM, eq. 15)."""
        tables = self._tables(x.dtype, x.device)
        return (x - _at(tables.noise, steps) * epsilon) / _at(tables.signal, steps)

    def step_below(self, data: Tensor, epsilon: Tensor, steps: Tensor) -> Tensor:
        """Return what predicted `data` and `epsilon` are one level below `steps` (N,) (DDIM, eq. 12, eta 0)."""
        tables = self._tables(data.dtype, data.device)
        return _at(tables.signal_below, steps) * data + _at(tables.noise_below, steps) * epsilon

    def posterior(self, data: Tensor, x: Tensor, steps: Tensor) -> Normal:
        """Return q(x one level below | x, data) (DDPM, eq. 6 and 7)."""
        tables = self._tables(x.dtype, x.device)
        mean = _at(tables.of_data, steps) * data + _at(tables.of_x, steps) * x
        return Normal(mean, _at(tables.low, steps).expand_as(x))

    def reverse(self, output: Tensor, x: Tensor, steps: Tensor) -> Normal:
        """Return p(x one level below | x) for a network's `output` (N, 2C, H, W) (Improved DDPM, eq. 15)."""
        epsilon, position = output.float().chunk(2, dim=1)
        # -1 is the smallest variance, beta-tilde, 1 the largest, beta
        share = (position + 1) / 2
        tables = self._tables(x.dtype, x.device)
        low, high = _at(tables.low, steps), _at(tables.high, steps)
        mean = self.posterior(self.predict_data(x, epsilon, steps), x, steps).mean
        return Normal(mean, share * high + (1 - share) * low)

    def hybrid_loss(self, output: Tensor, data: Tensor, noise: Tensor, steps: Tensor) -> GaussianTerms:
        """Return mse + vlb, in float32, of a network's `output` (N, 2C, H, W) for data, noise (N, C, H, W) and steps (N,).

        The vlb trains the variance only: epsilon is detached. Its weight is 1 as in DiT's code, which equals 0.001 in Improved
        DDPM (eq. 16) over the sum of 1000 levels. Level 0 is scored as 8-bit values, as DiT also does on latents.
        """
        output, data, noise = output.float(), data.float(), noise.float()
        x = self.add_noise(data, noise, steps)
        epsilon, position = output.chunk(2, dim=1)
        mse = (epsilon - noise).square().mean()
        truth = self.posterior(data, x, steps)
        model = self.reverse(torch.cat([epsilon.detach(), position], dim=1), x, steps)
        scored = torch.where((steps == 0)[:, None, None, None], _negative_log_likelihood(data, model), _kl(truth, model))
        vlb = scored.mean() / math.log(2)
        return GaussianTerms(mse + vlb, mse, vlb)

    def _tables(self, dtype: torch.dtype, device: torch.device) -> _Tables:
        """Return the tables, computed in float64 and copied to a device once: each copy makes the host wait for it."""
        if (dtype, device) not in self._copies:
            below = self.alpha_bar_below
            tables = _Tables(
                level=torch.tensor(self.levels),
                signal=self.alpha_bar.sqrt(),
                noise=(1 - self.alpha_bar).sqrt(),
                signal_below=below.sqrt(),
                noise_below=(1 - below).sqrt(),
                of_data=self.beta * below.sqrt() / (1 - self.alpha_bar),
                of_x=(1 - below) * (1 - self.beta).sqrt() / (1 - self.alpha_bar),
                low=self.posterior_log_variance,
                high=self.beta.log(),
            )
            self._copies[dtype, device] = _Tables(*(table.to(dtype).to(device) for table in tables))
        return self._copies[dtype, device]

    @cached_property
    def _copies(self) -> dict[tuple[torch.dtype, torch.device], _Tables]:
        return {}


def _at(table: Tensor, steps: Tensor) -> Tensor:
    """Return a table (S,) at steps (N,) as (N, 1, 1, 1)."""
    return table[steps][:, None, None, None]


def _kl(p: Normal, q: Normal) -> Tensor:
    """Return KL(p || q) in nats, elementwise."""
    ratio = (p.log_variance - q.log_variance).exp()
    return (q.log_variance - p.log_variance - 1 + ratio + (p.mean - q.mean).square() * (-q.log_variance).exp()) / 2


def _negative_log_likelihood(data: Tensor, model: Normal) -> Tensor:
    """Return -log P in nats of `data` in [-1, 1] under `model`, integrated over bins of 1/255 on each side (DDPM, eq. 13).

    The normal CDF is exact; the public code of DDPM and DiT approximates it by a tanh, within 2e-4.
    """
    precision = (-model.log_variance / 2).exp()
    above = torch.special.ndtr((data - model.mean + 1 / 255) * precision)
    below = torch.special.ndtr((data - model.mean - 1 / 255) * precision)
    # the outermost bins extend to infinity
    mass = torch.where(data > 0.999, 1 - below, torch.where(data < -0.999, above, above - below))
    return -mass.clamp(min=1e-12).log()
