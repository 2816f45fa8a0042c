"""What measurements report besides seconds, printed at the end of the run: how many things a second, and what ways to do one
thing cost against one another.
"""

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

RATES = pytest.StashKey[dict[str, float]]()
COSTS = pytest.StashKey[dict[str, tuple[float, float]]]()
"""Name -> bytes on disk an image, seconds of the fastest step, which other programs disturb least."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RATES], config.stash[COSTS] = {}, {}


@pytest.fixture
def per_second(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Note how many of `count` things, done in one round, that makes a second at the median round."""

    def note(count: int) -> None:
        if benchmark.stats is not None:  # None under --benchmark-disable
            benchmark.extra_info["per_second"] = count / benchmark.stats.stats.median
            request.config.stash[RATES][request.node.name] = benchmark.extra_info["per_second"]

    return note


@pytest.fixture
def bytes_an_image(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Callable[[float], None]:
    """Note what the way just measured keeps on disk; it is printed with its time, as ratios to the first way that was noted."""

    def note(count: float) -> None:
        if benchmark.stats is not None:
            benchmark.extra_info["bytes_an_image"] = count
            request.config.stash[COSTS][request.node.name] = (count, benchmark.stats.stats.min)

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, rate in config.stash[RATES].items():
        terminalreporter.write_line(f"{name:<40} {rate:>14,.1f} a second")
    costs = config.stash[COSTS]
    if costs:
        first_bytes, first_seconds = next(iter(costs.values()))
        for name, (count, seconds) in costs.items():
            terminalreporter.write_line(
                f"{name:<40} {count:>10,.1f} bytes an image ({count / first_bytes:.4f}) "
                f"{1000 * seconds:>10,.1f} ms a step ({seconds / first_seconds:.3f})"
            )
