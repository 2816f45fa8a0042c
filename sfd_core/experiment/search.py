"""Values of a search: draws from ranges, at random, spread evenly, or near the best so far (Optuna).

Draws depend on the ranges, the seed and what earlier draws measured. Finished points keep their numbers, so a search that is
started again draws the same values and goes on where it stood; it needs no storage of its own.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna import distributions, samplers
from optuna.trial import TrialState

from sfd_core.experiment.grid import Method, Range
from sfd_core.experiment.pruning import Losses, highest_losses
from sfd_core.host.errors import ConfigError

MEASURED_WITH = ("prepare.", "reference.", "evaluate.final_samples.")
"""Images, network and number of samples of the distance."""
DIGITS = 3
"""Significant digits of a drawn number, or those of its range's width if that is smaller; they are in the name of its point."""


Ranges = Mapping[str, Range | list[Any]]
"""Dotted key -> numbers between two bounds, or a list of values."""


@dataclass(frozen=True)
class Draw:
    """One combination of values."""

    values: Mapping[str, Any]
    trial: optuna.Trial


class Search:
    """Draws combinations and learns from what they measured.

    `tpe`: a tree-structured Parzen estimator; `random`: independent draws; `even`: a scrambled Sobol sequence, which leaves
    smaller gaps than random draws do. Raises `ConfigError` if nothing varies, or what the distance is measured with.
    """

    def __init__(self, ranges: Ranges, method: Method, seed: int) -> None:
        if not ranges:
            raise ConfigError("a search needs at least one range, such as delta_t from 0 to 1")
        if measuring := [key for key in ranges if f"{key}.".startswith(MEASURED_WITH)]:
            raise ConfigError(
                f"distances of points that differ in {', '.join(measuring)} do not compare, so no search can learn from them; "
                "leave it out, or sweep over it"
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(sampler=_sampler(method, seed))
        self._ranges = ranges
        self._distributions = {key: _distribution(values) for key, values in ranges.items()}

    def ask(self, count: int) -> list[Draw]:
        """Draw the next `count` combinations."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is experimental in Optuna, and that lists are drawn at random
            trials = [self._study.ask(self._distributions) for _ in range(count)]
        return [Draw({key: _named(value, self._ranges[key]) for key, value in trial.params.items()}, trial) for trial in trials]

    def tell(self, draw: Draw, distance: float | None, losses: Losses, pruned: bool = False) -> None:
        """Say what a combination measured, and its validation losses; no distance if it failed or was `pruned`."""
        for step, loss in losses.items():
            draw.trial.report(loss, step)
        ended = TrialState.PRUNED if pruned else TrialState.FAIL
        self._study.tell(draw.trial, distance, ended if distance is None else TrialState.COMPLETE)

    def highest_losses(self) -> dict[int, float]:
        """Return the validation losses above which a point stops early, see `experiment.pruning`."""
        return highest_losses(trial.intermediate_values for trial in self._study.get_trials(states=[TrialState.COMPLETE]))


def _sampler(method: Method, seed: int) -> samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if method == "random":
            return samplers.RandomSampler(seed=seed)
        if method == "even":
            return samplers.QMCSampler(seed=seed, scramble=True)
        # points of one round know nothing of one another, so each counts as bad until it is measured
        return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


def _distribution(values: Range | list[Any]) -> distributions.BaseDistribution:
    if not isinstance(values, Range):
        return distributions.CategoricalDistribution(values)
    if values.whole:
        return distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
    return distributions.FloatDistribution(values.low, values.high, log=values.log)


def _named(value: Any, values: Range | list[Any]) -> Any:
    """Return a number drawn between two bounds, still between them, with few enough digits for the name of its point."""
    if not isinstance(values, Range) or values.whole:
        return value
    scale = min(abs(value) or math.inf, values.high - values.low)
    return min(max(round(value, DIGITS - 1 - math.floor(math.log10(scale))), values.low), values.high)
