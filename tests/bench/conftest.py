"""What every measurement reports besides seconds, printed at the end of the run: how many things a second, and a remark."""

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

RATES = pytest.StashKey[dict[str, float]]()
REMARKS = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RATES], config.stash[REMARKS] = {}, {}


@pytest.fixture
def per_second(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Note how many of `count` things, done in one round, that makes a second at the median round."""

    def note(count: int) -> None:
        if benchmark.stats is not None:  # None under --benchmark-disable
            benchmark.extra_info["per_second"] = count / benchmark.stats.stats.median
            request.config.stash[RATES][request.node.name] = benchmark.extra_info["per_second"]

    return note


@pytest.fixture
def remark(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Note, in words behind the rate, what it is to be compared with."""

    def note(words: str) -> None:
        request.config.stash[REMARKS][request.node.name] = words

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, rate in config.stash[RATES].items():
        words = config.stash[REMARKS].get(name, "")
        terminalreporter.write_line(f"{name:<48} {rate:>14,.2f} a second {words}".rstrip())
