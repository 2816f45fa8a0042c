"""How a long wait shows: a bar on a terminal, one line now and then in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 15.0


def with_progress(items: Iterable[T], total: int, what: str, unit: str = "images", step: int = 1) -> Iterator[T]:
    """Yield `items` and show how far they are, with rate and time left; `step` units an item, `total` units in all."""
    if sys.stderr.isatty():
        with tqdm(total=total, desc=what, unit=f" {unit}") as bar:
            for item in items:
                yield item
                bar.update(min(step, total - bar.n))
    else:
        yield from _with_lines(items, total, what, unit, step)


def _with_lines(items: Iterable[T], total: int, what: str, unit: str, step: int) -> Iterator[T]:
    start = said = time.monotonic()
    done = 0
    for item in items:
        yield item
        done = min(total, done + step)
        now = time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES:
            said = now
            rate = done / (now - start)
            left = (total - done) / rate
            shown = f"{format_rate(rate)} {unit}/s, {left:.0f} s left"
            print(f"{what}: {done} of {total} {unit}, {shown}", file=sys.stderr, flush=True)
    seconds = max(time.monotonic() - start, 1e-9)
    print(f"{what}: {done} {unit} in {seconds:.1f} s, {format_rate(done / seconds)} {unit}/s", file=sys.stderr, flush=True)


def format_rate(rate: float) -> str:
    """Return a rate in whole units, a slow one with two digits, such as `0.16`."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
