"""When each variant reaches another's final distance: the speed-up in steps, images, FLOPs and wall time.

Between two snapshots the distance is taken to fall linearly in the logarithm of the cost, as convergence curves do over a short
span; beyond the snapshots nothing is extrapolated: a target that was not reached is said to be not reached.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sfd_core.host.errors import DataError

COSTS = ("step", "images_seen", "flops", "seconds")
COLUMNS = ("step", "images_seen", "flops", "samples")


@dataclass(frozen=True)
class Reach:
    """The cost at which `variant` first reached the final distance of `target`; None where it never did."""

    number: str
    target: str
    target_value: float
    variant: str
    steps: float | None
    images_seen: float | None
    flops: float | None
    seconds: float | None
    at_most: bool
    """The first snapshot was already there, so the true cost is this or less."""


def read_curves(outputs: Path, variants: Sequence[str]) -> pd.DataFrame:
    """Return the curves of `variants` (see `read_curve`) below one another, with a column `variant`."""
    return pd.concat([read_curve(outputs, variant).assign(variant=variant) for variant in variants], ignore_index=True)


def read_curve(outputs: Path, variant: str) -> pd.DataFrame:
    """Return a variant's curve, sorted by step, with the training seconds at each snapshot.

    The numbers come from stage `evaluate`, the seconds from the curve of stage `train`; they are NaN where that is missing.
    Raises `DataError` if a file is unreadable, empty or lacks a column.
    """
    curve = _read_table(outputs / "evaluate" / variant / "curve.csv", COLUMNS).sort_values("step", ignore_index=True)
    history = outputs / "train" / variant / "history.csv"
    if "seconds" not in curve:
        curve.insert(2, "seconds", math.nan)
        if history.is_file() and not (clock := pd.read_csv(history)).empty:
            curve["seconds"] = np.interp(curve["step"], clock["step"], clock["seconds"])
    return curve


def speed_up(curves: pd.DataFrame, number: str, targets: Sequence[str] | None = None) -> list[Reach]:
    """Return for each of `targets` (default: all variants) and each variant when it first reached the target's final value.

    `number` falls while a model learns. The target's own entry follows the same rule, so a curve that bottoms out early gives
    its own earlier cost. Raises `DataError` if distances of different sample counts would be compared.
    """
    names = [str(name) for name in curves["variant"].unique()]
    if curves["samples"].nunique() > 1:
        counts = ", ".join(str(count) for count in sorted(curves["samples"].unique()))
        raise DataError(
            f"the curves mix {number} of {counts} samples, which do not compare (fewer samples, larger distance); "
            "evaluate every snapshot with evaluate.snapshot_samples"
        )
    reaches = []
    for target in targets or names:
        final = float(_curve(curves, target)[number].iloc[-1])
        reaches += [_reach(_curve(curves, name), number, target, final) for name in names]
    return reaches


def _curve(curves: pd.DataFrame, variant: str) -> pd.DataFrame:
    return curves[curves["variant"] == variant].sort_values("step", ignore_index=True)


def _reach(curve: pd.DataFrame, number: str, target: str, final: float) -> Reach:
    values = [float(value) for value in curve[number]]
    first = next((index for index, value in enumerate(values) if value <= final), None)
    steps, images_seen, flops, seconds = (
        None if first is None else _cost(curve[column].astype(float).tolist(), values, first, final) for column in COSTS
    )
    variant = str(curve["variant"].iloc[0])
    seconds = None if seconds is None or math.isnan(seconds) else seconds
    return Reach(number, target, final, variant, steps, images_seen, flops, seconds, at_most=first == 0)


def _cost(costs: list[float], values: list[float], first: int, final: float) -> float:
    """Return the cost at which the distance crossed `final` just before snapshot `first`."""
    if first == 0 or not math.isfinite(values[first - 1]) or costs[first - 1] <= 0:
        return costs[first]
    share = (values[first - 1] - final) / (values[first - 1] - values[first])
    return math.exp((1 - share) * math.log(costs[first - 1]) + share * math.log(costs[first]))


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no readable curve ({error}); run its stage again") from error
    absent = [name for name in columns if name not in table]
    if absent or table.empty:
        raise DataError(f"{path} has no rows or lacks columns {', '.join(absent)}; run its stage again")
    return table
