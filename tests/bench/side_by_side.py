"""The engine beside the baseline of `infra/bench`: both timed in turns, and a step of either taken apart."""

import contextlib
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from bench.operations import Profiler, Work, WorkCounter, averaging

from infra.bench import eager_baseline
from infra.bench.workload import Measured, Workload, eager_steps, train_with_engine
from sfd_core.models.denoisers.blocks import compile_blocks
from sfd_core.training.ema import EMA


@dataclass(frozen=True)
class Breakdown:
    """Where one step goes: the work of every group of operations, and the seconds that were measured."""

    work: dict[str, Work]
    seconds: dict[str, float]


def break_down_engine(workload: Workload, folder: Path, steps: int) -> Breakdown:
    """Take the product's training apart."""
    tools = _Breakdown(steps)
    with mock.patch.object(EMA, "update", averaging()(EMA.update)):
        train_with_engine(workload, folder, tools.at_step_end)
    return tools.result()


def break_down_eager(workload: Workload, folder: Path, steps: int) -> Breakdown:
    """Take the baseline's training apart."""
    tools = _Breakdown(steps)
    marked = mock.patch.object(eager_baseline, "update_ema", averaging()(eager_baseline.update_ema))
    with marked, contextlib.suppress(Measured):
        for done, _ in enumerate(eager_steps(workload, folder), start=1):
            tools.at_step_end(done)
    return tools.result()


class _Breakdown:
    """Counts the work of the second step and profiles some after it; the first warms up."""

    def __init__(self, steps: int) -> None:
        self.counter, self.profiler, self.steps = WorkCounter(), Profiler(), steps
        self.seconds: dict[str, float] = {}

    def at_step_end(self, done: int) -> None:
        if done == 1:
            self.counter.__enter__()
        elif done == 2:
            self.counter.__exit__(None, None, None)
            self.profiler.start()
        elif done == 2 + self.steps:
            self.seconds = self.profiler.stop(self.steps)
            raise Measured

    def result(self) -> Breakdown:
        return Breakdown(self.counter.work, self.seconds)


@dataclass(frozen=True)
class Rates:
    """Images a second of every round."""

    eager: list[float]
    engine: list[float]
    first_step: float
    """Seconds of the engine's first step, which compiles if anything does."""

    @property
    def ratios(self) -> list[float]:
        """Engine over baseline, round by round."""
        return [engine / eager for engine, eager in zip(self.engine, self.eager, strict=True)]


def interleave(workload: Workload, folder: Path, rounds: int, steps: int, compiled: bool = False) -> Rates:
    """Measure both trainings in turns of `steps` steps, in one process; one turn more warms up."""
    baseline = eager_steps(workload, folder)
    eager: list[float] = []
    engine: list[float] = []
    began = time.perf_counter()
    first_step = 0.0

    def at_step_end(done: int) -> None:
        nonlocal began, first_step
        if done == 1:
            first_step = time.perf_counter() - began
        if done == 0 or done % steps:
            return
        engine.append(steps * workload.batch / (time.perf_counter() - began))
        began = time.perf_counter()
        for _ in itertools.islice(baseline, steps):
            pass
        eager.append(steps * workload.batch / (time.perf_counter() - began))
        if len(eager) > rounds:
            raise Measured
        began = time.perf_counter()

    model = workload.network()
    if compiled:
        compile_blocks(model)
    train_with_engine(workload, folder, at_step_end, model)
    return Rates(eager[1:], engine[1:], first_step)
