"""Paths that no variant writes down: the one that stage `schedule` found, and those that a map of corners compares."""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from sfd_core.experiment.params import VariantParams
from sfd_core.host.errors import ConfigError

SHAPES_RESULTS = True

PATH_FILE = "path.json"


def with_found_path(variant: VariantParams, schedule: Path) -> VariantParams:
    """Return a variant with the path in the folder of stage `schedule`, if it has `found_path`, else as it is.

    Raises `ConfigError` if no path was found.
    """
    if not variant.found_path:
        return variant
    file = schedule / PATH_FILE
    corners = json.loads(file.read_text()) if file.is_file() else None
    if corners is None:
        raise ConfigError(f"found_path is true, but {file} holds no path; set `schedule`, and run `dvc repro schedule`")
    return variant.model_copy(update={"path": corners, "found_path": False})


def corner_paths(times: Sequence[float]) -> list[list[list[float]]]:
    """Return the paths of two straight pieces over every corner [t_tex, t_sem] of the grid of `times`.

    The straight path comes first and once, with the corner [0.5, 0.5]; [0, 1] finishes semantics first, [1, 0] texture.
    """
    grid = product(sorted({float(time) for time in times}), repeat=2)
    corners = [[0.5, 0.5], *([t_tex, t_sem] for t_tex, t_sem in grid if t_tex != t_sem)]
    return [[[0.0, 0.0], corner, [1.0, 1.0]] for corner in corners]
