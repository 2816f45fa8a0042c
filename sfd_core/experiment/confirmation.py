"""The trainings that confirm a study of orders: the best two paths of one denoiser, each trained for itself."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfd_core.experiment.grid import Space
from sfd_core.experiment.numbers import frechet_distances

WARNING = "one training of all paths and trainings along one path alone have been seen to rank paths differently"
BEST = 2
DRAWN = {"evaluate.sampler.delta_t": None, "evaluate.sampler.path": None}
"""Each is sampled along the path that it was trained on."""


@dataclass(frozen=True)
class Confirmation:
    """Values of a variant that train it along each of several paths alone."""

    variant: str
    changes: Mapping[str, Any]
    """Key of the variant -> its value in all trainings."""
    key: str
    """`delta_t` or `path`."""
    values: Sequence[Any]

    @classmethod
    def of(cls, variant: str, rows: Sequence[Mapping[Any, Any]]) -> "Confirmation":
        """Choose the two rows with the least distance, the first of the numbers, from the table of a study of orders."""
        number = frechet_distances(rows[0])[0].name
        best = sorted(rows, key=lambda row: float(row[number]))[:BEST]
        if "delta_t" in rows[0]:
            return cls(variant, {"times": {"kind": "global"}}, "delta_t", [float(row["delta_t"]) for row in best])
        corners = [[float(row["t_tex"]), float(row["t_sem"])] for row in best]
        paths = [[[0.0, 0.0], corner, [1.0, 1.0]] for corner in corners]
        return cls(variant, {"times": {"kind": "global"}, "delta_t": 0.0}, "path", paths)

    @property
    def command(self) -> str:
        """The command line that trains and evaluates them."""
        changes = {f"variants.{self.variant}.{key}": value for key, value in self.changes.items()} | DRAWN | {"studies": {}}
        assigned = [word for key, value in changes.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        words = ["sfd", "experiment", f"confirm-{self.variant}", "--variants", self.variant, *assigned]
        return shlex.join([*words, "--vary", self.key, *map(json.dumps, self.values)])

    @property
    def space(self) -> Space:
        """The same as the points of a sweep."""
        return Space([self.variant], {self.key: self.values}, [], {**self.changes, **DRAWN})
