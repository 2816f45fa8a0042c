"""How a person sees a long training: a bar on a terminal, sparse lines elsewhere."""

import sys
import time
from datetime import datetime, timedelta
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

from sfd_core.host.progress import FORECAST_STEPS, SECONDS_BETWEEN_LINES, SHORT
from sfd_core.host.settings import Settings

SHAPES_RESULTS = False


class Progress:
    """Shows step, loss, rate and time left on stderr."""

    def __init__(self, name: str, total: int, start: int, shown: bool = True) -> None:
        self._name, self._total, self._start = name, total, start
        self._began = self._last_line = time.monotonic()
        self._forecast = False
        self._shown, self._terminal = shown, shown and sys.stderr.isatty()
        self._bar: tqdm[NoReturn] = tqdm(total=total, initial=start, desc=name, unit="step", disable=not self._terminal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    def log(self, message: str) -> None:
        """Print one line that must not be missed."""
        if not self._shown:
            return
        self._bar.clear()
        print(f"{self._name}: {message}", file=sys.stderr, flush=True)

    def show(self, step: int, loss: float, images_per_second: float) -> None:
        """Report that `step` steps are done; once, after 200 of them, also the hours that are left and what they cost."""
        if not self._forecast and step - self._start >= FORECAST_STEPS:
            self._forecast = True
            if (seconds := self._seconds_left(step)) > SHORT:
                self.log(forecast(seconds, self._total - step, Settings.read().hour_price))
        if self._terminal:
            self._bar.set_postfix(loss=f"{loss:.4g}", images=f"{images_per_second:.0f}/s", refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if step == self._total or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = self._seconds_left(step)
            self.log(f"step {step}/{self._total} loss {loss:.4g} {images_per_second:.0f} images/s, {left:.0f} s left")

    def _seconds_left(self, step: int) -> float:
        return (time.monotonic() - self._began) / max(1, step - self._start) * (self._total - step)


def forecast(seconds: float, steps: int, hour_price: float | None) -> str:
    """Say how long `steps` steps take, when they end, and what they cost."""
    end = datetime.now().astimezone() + timedelta(seconds=seconds)
    cost = "" if hour_price is None else f", cost {seconds / 3600 * hour_price:,.2f} (SFD_HOUR_PRICE)"
    return f"forecast: {steps:,} more steps take {seconds / 3600:.1f} hours, until {end:%Y-%m-%d %H:%M}{cost}"
