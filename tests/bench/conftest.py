"""What every measurement reports besides seconds: how many things a second, and what they are to be compared with.

It is printed at the end of the run and kept as `extra_info` of `--benchmark-json`, of which `performance_page` makes tables.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from infra.bench import machine


@dataclass(frozen=True)
class Usage:
    """Seconds that all processors together have worked, and those that this process and its ended children have."""

    at: float
    all: float
    own: float

    @classmethod
    def now(cls) -> "Usage":
        """Read the system's counters."""
        total, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = total.idle + getattr(total, "iowait", 0.0)
        return cls(time.monotonic(), sum(total[:8]) - idle, sum(own[:4]))

    def others_since(self, before: "Usage") -> float:
        """Return how many processors others than this process kept busy since `before`, on average."""
        seconds = max(self.at - before.at, 1e-9)
        return max(0.0, ((self.all - before.all) - (self.own - before.own)) / seconds)


RATES = pytest.StashKey[dict[str, float]]()
REMARKS = pytest.StashKey[dict[str, str]]()
STARTED = pytest.StashKey[Usage]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RATES], config.stash[REMARKS], config.stash[STARTED] = {}, {}, Usage.now()


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Say on what the measurements were made, and how many processors others used meanwhile."""
    others = Usage.now().others_since(config.stash[STARTED])
    output_json["facts"] = {**machine.facts(), "processors_busy_with_others": round(others, 2)}


@pytest.fixture
def per_second(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Note how many of `count` things, done in one round, that makes a second at the median round."""

    def keep(count: int) -> None:
        if benchmark.stats is not None:  # None under --benchmark-disable
            benchmark.extra_info["per_second"] = count / benchmark.stats.stats.median
            request.config.stash[RATES][request.node.name] = benchmark.extra_info["per_second"]

    return keep


@pytest.fixture
def remark(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Note, in words behind the rate, what it is to be compared with."""

    def keep(words: str) -> None:
        benchmark.extra_info["remark"] = words
        request.config.stash[REMARKS][request.node.name] = words

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rates, remarks = config.stash[RATES], config.stash[REMARKS]
    for name in dict.fromkeys([*rates, *remarks]):
        rate = f"{rates[name]:>14,.2f} a second" if name in rates else " " * 23
        terminalreporter.write_line(f"{name:<48} {rate} {remarks.get(name, '')}".rstrip())
