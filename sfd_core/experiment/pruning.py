"""Which points of a search stop early: those whose validation loss is behind that of the finished points.

The signal is the validation loss of texture that a training prints at each snapshot, not the distance, which nobody measures
before the end. The rule is that of Optuna's median pruner, but each loss is judged alone and not the lowest so far: a training
that was resumed elsewhere is then judged like any other.
"""

import csv
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from sfd_core.experiment.params import LATENTS
from sfd_core.host.errors import ConfigError

Losses = Mapping[int, float]
"""Step -> validation loss of texture, or the highest that may go on."""
FEWEST = 4
"""Points that have to be finished before another one is judged."""
DIGITS = 4
"""Significant digits that a training prints."""
MEASURED_ON = (*LATENTS, "schedule", "train.validation_images")
MEASURED_ALONG = ("model", "semantic", "delta_t", "path", "found_path")
"""Groups and values without which a validation loss has another meaning: its latents, and its target or path."""
_PRINTED = re.compile(r"[^:]+: step (?P<step>\d+), validation loss: texture (?P<loss>[^\s,]+)")


class Pruned(Exception):  # noqa: N818 (nothing went wrong)
    """A training is behind the finished points and was stopped."""


@dataclass
class Judge:
    """Reads what a training prints and tells when it is behind."""

    highest: Losses
    losses: dict[int, float] = field(default_factory=dict)
    """Printed so far."""

    def read(self, line: str) -> None:
        """Take a line of a training's output; most lines say nothing of a validation loss. Raises `Pruned`."""
        if found := _PRINTED.match(line):
            self.losses[int(found["step"])] = float(found["loss"])
            self.require_level()

    def require_level(self) -> None:
        """Raise `Pruned` if a loss was above its limit."""
        step = step_behind(self.losses, self.highest)
        if step is not None:
            raise Pruned(
                f"validation loss {self.losses[step]:.{DIGITS}g} at step {step} is above {self.highest[step]:.{DIGITS}g}, "
                "the median of the finished points"
            )


def step_behind(losses: Losses, highest: Losses) -> int | None:
    """Return the first step whose loss is above its limit or no number; None if there is none."""
    return next((step for step, loss in sorted(losses.items()) if step in highest and not loss <= highest[step]), None)


def highest_losses(curves: Iterable[Losses]) -> dict[int, float]:
    """Return the median of finished points at each step that at least `FEWEST` of them have."""
    by_step: dict[int, list[float]] = {}
    for curve in curves:
        for step, loss in curve.items():
            if math.isfinite(loss):
                by_step.setdefault(step, []).append(loss)
    return {step: median(losses) for step, losses in sorted(by_step.items()) if len(losses) >= FEWEST}


def limits_of(highest: Losses, values: Mapping[str, Any]) -> dict[int, float]:
    """Return the limits for a point with raw parameters `values`: after its last step there is nothing to save."""
    return {step: loss for step, loss in highest.items() if step < values["train"]["optimisation"]["steps"]}


def read_losses(path: Path) -> dict[int, float]:
    """Read the losses in the `validation.csv` of a training, rounded as they are printed; empty without the file."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {int(float(row["step"])): float(f"{float(row['texture']):.{DIGITS}g}") for row in csv.DictReader(file)}


def require_comparable(ranges: Collection[str], values: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless points that differ in the keys `ranges` have validation losses that compare."""
    fixed = (*MEASURED_ON, *MEASURED_ALONG)
    if differing := [key for key in ranges if any(key == name or key.startswith(f"{name}.") for name in fixed)]:
        raise ConfigError(
            f"prune is on, but validation losses of points that differ in {', '.join(differing)} do not compare; "
            "switch prune off, or search over other values"
        )
    train = values["train"]
    for key, least in (("validation_images", 1), ("snapshots", 2)):
        if (given := train.get(key, 0)) < least:
            raise ConfigError(
                f"prune is on, but train.{key} is {given}: no validation loss tells before the end which point is behind; "
                f"set it to {least} or more under changes, or switch prune off"
            )
