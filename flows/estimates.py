"""What a sweep is about to take: hours and bytes, from points that are finished and from the sizes of the networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.grid import Point
from sfd_core.sizes import MODEL_SIZES

WEIGHTS_A_BLOCK = 18
"""Weights of one block in units of width squared: attention 4, SwiGLU 8, adaLN 6."""
BYTES_A_WEIGHT = 4


@dataclass(frozen=True)
class Outlook:
    """A sweep before it starts."""

    table: list[dict[str, Any]]
    """A row a point: whether it is finished, and what it is expected to take."""
    words: str


def outlook(points: Sequence[Point], finished: Mapping[str, Mapping[str, Any]]) -> Outlook:
    """Estimate every missing point from the finished ones; without any, hours are unknown."""
    rate = _seconds_per_work(points, finished)
    rows = []
    for point in points:
        done = point.key in finished
        hours = None if rate is None else round(rate * _work(point) / 3600, 2)
        rows.append(
            {
                "point": point.name,
                "status": "finished" if done else "missing",
                "hours": 0.0 if done else hours,
                "gigabytes": 0.0 if done else round(_bytes(point) / 1e9, 3),
            }
        )
    return Outlook(rows, _words(rows))


def _words(rows: Sequence[Mapping[str, Any]]) -> str:
    missing = [row for row in rows if row["status"] == "missing"]
    known = [row["hours"] for row in missing if row["hours"] is not None]
    hours = (
        f"about {sum(known):.2g} hours of training" if len(known) == len(missing) else "hours unknown: no point is finished yet"
    )
    size = sum(row["gigabytes"] for row in missing)
    return f"{len(rows)} points, {len(rows) - len(missing)} finished; {len(missing)} to do: {hours}, {size:.2g} GB of weights"


def _seconds_per_work(points: Sequence[Point], finished: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return the mean training seconds that a unit of work took in the finished points of this sweep."""
    done = [(finished[point.key], _work(point)) for point in points if point.key in finished]
    rates = [float(record["training"]["seconds"]) / work for record, work in done if record.get("training", {}).get("seconds")]
    return sum(rates) / len(rates) if rates else None


def _work(point: Point) -> float:
    """Return what a training's time grows with: images seen, tokens an image, weights."""
    optimisation, variant = point.values["train"]["optimisation"], point.values["variants"][point.variant]
    side = point.values["prepare"]["resolution"] // point.values["texture_vae"]["downsampling"] // variant["patch"]
    return float(optimisation["steps"] * optimisation["batch_size"] * side**2 * _weights(point))


def _bytes(point: Point) -> int:
    """Return the bytes of a point's snapshots."""
    return int(BYTES_A_WEIGHT * point.values["train"]["snapshots"] * _weights(point))


def _weights(point: Point) -> int:
    size = MODEL_SIZES[point.values["variants"][point.variant]["size"]]
    return WEIGHTS_A_BLOCK * size.depth * size.width**2
