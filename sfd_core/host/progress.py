"""Progress of long operations: a bar on a terminal, a line every 15 seconds in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 15.0
FORECAST_STEPS = 200
"""Steps after which hours and cost of a training are forecast."""
SHORT = 600.0
"""Seconds; the forecast of a training that ends sooner is left out."""


def with_progress(
    items: Iterable[T], total: int, what: str, unit: str = "images", step: int = 1, quick: float = 0.0
) -> Iterator[T]:
    """Yield `items` and show progress, rate and time left; an item counts `step` units of `total`.

    Nothing is shown of what takes less than `quick` seconds.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, desc=what, unit=f" {unit}", delay=quick, leave=not quick) as bar:
            for item in items:
                yield item
                bar.update(min(step, total - bar.n))
    else:
        yield from _with_lines(items, total, what, unit, step, quick)


def _with_lines(items: Iterable[T], total: int, what: str, unit: str, step: int, quick: float) -> Iterator[T]:
    start = last_line = time.monotonic()
    done = 0
    for item in items:
        yield item
        done = min(total, done + step)
        now = time.monotonic()
        if now - last_line >= SECONDS_BETWEEN_LINES:
            last_line = now
            rate = done / (now - start)
            left = (total - done) / rate
            shown = f"{format_rate(rate)} {unit}/s, {left:.0f} s left"
            print(f"{what}: {done} of {total} {unit}, {shown}", file=sys.stderr, flush=True)
    seconds = max(time.monotonic() - start, 1e-9)
    if seconds >= quick:
        print(f"{what}: {done} {unit} in {seconds:.1f} s, {format_rate(done / seconds)} {unit}/s", file=sys.stderr, flush=True)


def format_rate(rate: float) -> str:
    """Return a rate as a whole number, or with two digits below 10, such as `0.16`."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
