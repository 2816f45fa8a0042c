"""The engine that stage `train` uses against a straightforward eager loop, and where a step's time goes in both."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median

import pytest
import torch
from bench.operations import Work
from bench.side_by_side import Rates, break_down_eager, break_down_engine, interleave
from pytest_benchmark.fixture import BenchmarkFixture

from infra.bench import machine
from infra.bench.workload import Workload, embedded

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

WORKLOADS = {"tiny": embedded(), "S": Workload("S", batch=16), "B": Workload("B", batch=8)}
ROUNDS = {"tiny": (9, 10), "S": (7, 1), "B": (5, 1)}
"""Rounds and steps of each."""


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many threads of torch for the time of a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", WORKLOADS)
def test_engine_against_an_eager_loop(
    benchmark: BenchmarkFixture, remark: Callable[[str], None], tmp_path: Path, size: str, threads: int
) -> None:
    workload = WORKLOADS[size]
    rates = benchmark.pedantic(lambda: interleave(workload, tmp_path, *ROUNDS[size]))
    benchmark.extra_info.update(
        **_described(workload), threads=threads, eager=rates.eager, engine=rates.engine, ratios=rates.ratios
    )
    remark(_compared(rates))


@pytest.mark.parametrize("size", ["tiny", "S"])
def test_where_a_step_goes(benchmark: BenchmarkFixture, tmp_path: Path, size: str, threads: int) -> None:
    workload, steps = WORKLOADS[size], 5 if size == "tiny" else 2
    peak, bandwidth = machine.matmul_peak(), machine.copy_bandwidth()
    ways = {"eager": break_down_eager, "engine": break_down_engine}
    parts = benchmark.pedantic(lambda: {way: take_apart(workload, tmp_path / way, steps) for way, take_apart in ways.items()})
    benchmark.extra_info.update(
        **_described(workload), threads=threads, matmul_flops_per_second=peak, copy_bytes_per_second=bandwidth
    )
    for way, part in parts.items():
        assert part.seconds.keys() > part.work.keys()
        groups = {
            group: {
                **asdict(part.work.get(group, Work())),
                "predicted": part.work.get(group, Work()).seconds(peak, bandwidth),
                "measured": seconds,
            }
            for group, seconds in part.seconds.items()
        }
        benchmark.extra_info.update(**{way: groups})


@pytest.mark.filterwarnings("ignore::UserWarning")  # the compiler's own
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("size", WORKLOADS)
def test_compiled_engine_against_an_eager_loop(
    benchmark: BenchmarkFixture,
    remark: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: str,
    threads: int,
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    torch.compiler.reset()
    workload = WORKLOADS[size]
    rates = benchmark.pedantic(lambda: interleave(workload, tmp_path, *ROUNDS[size], compiled=True))
    speeds = {"eager": rates.eager, "engine": rates.engine, "ratios": rates.ratios, "first_step": rates.first_step}
    benchmark.extra_info.update(**_described(workload), threads=threads, **speeds)
    remark(f"{_compared(rates)} after a first step of {rates.first_step:.0f} s")


def _compared(rates: Rates) -> str:
    return (
        f"{median(rates.engine):,.1f} images/s, eagerly {median(rates.eager):,.1f}: {median(rates.ratios):.2f} times "
        f"({min(rates.ratios):.2f} to {max(rates.ratios):.2f})"
    )


def _described(workload: Workload) -> dict[str, int | str]:
    return {"size": workload.size, "batch": workload.batch, "tokens": workload.tokens, "channels": workload.channels}
