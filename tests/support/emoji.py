"""Preset `emoji`, a small experiment with labels, which most tests vary."""

import copy
from pathlib import Path
from typing import Any

from sfd_core.experiment.params import Params, parse_params
from sfd_core.experiment.presets import load_preset
from sfd_core.experiment.values import set_value

ROOT = Path(__file__).parents[2]


def emoji_values(root: Path = ROOT) -> dict[str, Any]:
    """Return the raw parameters of the project in `root`."""
    return copy.deepcopy(dict(load_preset("emoji", root / "presets").values))


def emoji_with(key: str, value: Any) -> dict[str, Any]:
    """Return the raw parameters with another value of a dotted key."""
    values = emoji_values()
    set_value(values, key, value)
    return values


def emoji() -> Params:
    """Return the checked parameters."""
    return parse_params(emoji_values())
