"""What may go wrong in a step: a loss or gradient that is not finite, or a loss far above its neighbours'.

The numbers of a step reach the host some steps later, so that the device never waits.
"""

import csv
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sfd_core.host.errors import NumericsError
from sfd_core.host.paths import atomic_path
from sfd_core.training.task import TrainingTask

SKIPPED_IN_A_ROW_LIMIT = 10
NEIGHBOURS = 100
"""Losses that a new one is compared with, once there are so many."""
SPIKE = 10.0
"""A spike is so many median absolute deviations above the median."""
STEPS_LATE = 2
"""Steps until the host reads the numbers of a step on a GPU: by then they have arrived without waiting."""
COLUMNS = ("step", "kind", "loss", "gradient_norm", "usual_loss", "rows")


class StepNumbers:
    """Numbers of steps on their way from the device to the host, in order."""

    def __init__(self, device: torch.device) -> None:
        self._late = STEPS_LATE if device.type == "cuda" else 0
        self._coming: deque[tuple[int, Sequence[str], Tensor, torch.cuda.Event | None]] = deque()

    def put(self, step: int, names: Sequence[str], values: Tensor) -> None:
        """Send off the numbers of a step, `values` (len(names),)."""
        arrived = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._coming.append((step, names, values, arrived))

    def due(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield step and numbers of those sent off long enough ago; which these are depends on the number of steps alone."""
        while len(self._coming) > self._late:
            yield self._next()

    def all(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield all that were sent off, waiting for them."""
        while self._coming:
            yield self._next()

    def _next(self) -> tuple[int, dict[str, float]]:
        step, names, values, arrived = self._coming.popleft()
        if arrived is not None:
            arrived.synchronize()
        return step, dict(zip(names, values.tolist(), strict=True))


class Incidents:
    """A CSV file of steps where something went wrong, with the images of their batches."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row."""
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)

    def truncate(self, step: int) -> None:
        """Drop rows of steps beyond the first `step` ones, and one that a kill cut short."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else [",".join(COLUMNS) + "\n"]
        kept = [line for line in lines[1:] if line.endswith("\n") and int(line.split(",", 1)[0]) <= step]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join([",".join(COLUMNS) + "\n", *kept]))


class Guard:
    """Checks the numbers of each step, in order."""

    def __init__(self, name: str, learning_rate: float, incidents: Incidents | None, task: TrainingTask) -> None:
        self._name, self._learning_rate, self._incidents, self._task = name, learning_rate, incidents, task
        self.skipped = self.spikes = self._in_a_row = 0
        self._losses: deque[float] = deque(maxlen=NEIGHBOURS)
        self.log: Callable[[str], None] = lambda _: None

    def check(self, step: int, values: Mapping[str, float]) -> bool:
        """Return whether the step counted from 0 made an update. Raises `NumericsError` after ten in a row that did not."""
        if not all(map(math.isfinite, values.values())):
            self._skip(step, values)
            return False
        self._in_a_row = 0
        loss = values["loss"]
        usual = median(self._losses) if len(self._losses) == NEIGHBOURS else math.inf
        spread = median(abs(other - usual) for other in self._losses) if usual < math.inf else 0.0
        if loss > usual + SPIKE * spread > usual:
            self.spikes += 1
            self.log(f"step {step + 1}: loss {loss:.4g} is far above the usual {usual:.4g} (noted in incidents.csv)")
            self._note(step, "spike", values, usual)
        self._losses.append(loss)
        return True

    def state(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {"skipped": self.skipped, "spikes": self.spikes, "in_a_row": self._in_a_row, "losses": list(self._losses)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo `state`."""
        self.skipped, self.spikes, self._in_a_row = state["skipped"], state["spikes"], state["in_a_row"]
        self._losses.extend(state["losses"])

    def forget_beyond(self, step: int) -> None:
        """Drop incidents later than `step` done steps."""
        if self._incidents is not None:
            self._incidents.truncate(step)

    def _skip(self, step: int, values: Mapping[str, float]) -> None:
        self.skipped += 1
        self._in_a_row += 1
        self.log(f"step {step + 1} skipped: loss or gradient is not finite ({self.skipped} skipped so far)")
        self._note(step, "skipped", values, median(self._losses) if self._losses else math.nan)
        if self._in_a_row >= SKIPPED_IN_A_ROW_LIMIT:
            raise NumericsError(
                f"{self._name}: loss or gradient was not finite in {SKIPPED_IN_A_ROW_LIMIT} steps in a row, the last one "
                f"step {step + 1}; lower learning_rate {self._learning_rate}, warm up longer, or set clip_norm"
            )

    def _note(self, step: int, kind: str, values: Mapping[str, float], usual: float) -> None:
        if self._incidents is not None:
            rows = " ".join(map(str, self._task.order.rows(step).tolist()))
            numbers = {"loss": values["loss"], "gradient_norm": values["gradient_norm"], "usual_loss": usual}
            self._incidents.append({"step": step + 1, "kind": kind, **numbers, "rows": rows})
