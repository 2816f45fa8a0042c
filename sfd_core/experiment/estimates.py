"""The expected cost of a sweep, in hours and bytes, from finished points and the sizes of the networks."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfd_core.experiment.grid import Point
from sfd_core.experiment.params import load_params
from sfd_core.experiment.sizes import MODEL_SIZES
from sfd_core.host.paths import stage_dir

WEIGHTS_A_BLOCK = 18
"""Weights of one block in units of width squared: attention 4, SwiGLU 8, adaLN 6."""
BYTES_A_WEIGHT = 4


@dataclass(frozen=True)
class Outlook:
    """A sweep before it starts."""

    table: list[dict[str, Any]]
    """A row a point: whether it is finished, and its expected cost."""
    words: str


def outlook(points: Sequence[Point], finished: Mapping[str, Mapping[str, Any]], rates: Sequence[float] = ()) -> Outlook:
    """Estimate every missing point from this sweep's finished ones or else from `rates` (see `project_rates`)."""
    own = [
        finished[point.key].get("training", {}).get("seconds", 0.0) / _work(point) for point in points if point.key in finished
    ]
    known = [rate for rate in own if rate > 0] or list(rates)
    rows = []
    for point in points:
        is_done = point.key in finished
        hours = round(sum(known) / len(known) * _work(point) / 3600, 2) if known else None
        rows.append(
            {
                "point": point.name,
                "status": "finished" if is_done else "missing",
                "hours": 0.0 if is_done else hours,
                "gigabytes": 0.0 if is_done else round(_bytes(point) / 1e9, 3),
            }
        )
    return Outlook(rows, _words(rows))


def project_rates(project: Path) -> list[float]:
    """Return the seconds a unit of work for each training with results in the project's outputs."""
    values = load_params(project / "params.yaml").model_dump(mode="json")
    rates = []
    for name in values["active"]:
        with suppress(OSError, ValueError, KeyError):
            measured = json.loads((project / stage_dir("train", name) / "metrics.json").read_text())
            rates.append(measured["seconds"] / (measured["images_seen"] * _work_an_image(values, name)))
    return [rate for rate in rates if rate > 0]


def _words(rows: Sequence[Mapping[str, Any]]) -> str:
    missing = [row for row in rows if row["status"] == "missing"]
    known = [row["hours"] for row in missing if row["hours"] is not None]
    hours = f"about {sum(known):.2g} hours of training" if len(known) == len(missing) else "hours unknown: nothing trained yet"
    size = sum(row["gigabytes"] for row in missing)
    return f"{len(rows)} points, {len(rows) - len(missing)} finished; {len(missing)} to do: {hours}, {size:.2g} GB of weights"


def _work(point: Point) -> float:
    """Return the amount of work that a training's time is proportional to: images seen, tokens an image, weights."""
    optimisation = point.values["train"]["optimisation"]
    return float(optimisation["steps"] * optimisation["batch_size"] * _work_an_image(point.values, point.variant))


def _work_an_image(values: Mapping[str, Any], variant: str) -> int:
    side = values["prepare"]["resolution"] // values["texture_vae"]["downsampling"] // values["variants"][variant]["patch"]
    return int(side**2 * _weights(values, variant))


def _bytes(point: Point) -> int:
    """Return the bytes of a point's snapshots."""
    return int(BYTES_A_WEIGHT * point.values["train"]["snapshots"] * _weights(point.values, point.variant))


def _weights(values: Mapping[str, Any], variant: str) -> int:
    size = MODEL_SIZES[values["variants"][variant]["size"]]
    return WEIGHTS_A_BLOCK * size.depth * size.width**2
