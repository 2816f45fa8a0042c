"""The engine that stage `train` uses against a straightforward eager loop, and where a step's time goes in both."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median

import pytest
import torch
from bench import machine
from bench.operations import Work
from bench.workload import Workload, break_down_eager, break_down_engine, embedded, interleave, train_alone
from pytest_benchmark.fixture import BenchmarkFixture

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

Note = Callable[..., None]
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
    benchmark: BenchmarkFixture, note: Note, remark: Callable[[str], None], tmp_path: Path, size: str
) -> None:
    workload = WORKLOADS[size]
    rates = benchmark.pedantic(lambda: interleave(workload, tmp_path, *ROUNDS[size]))
    note(**_described(workload), eager=rates.eager, engine=rates.engine, ratios=rates.ratios)
    remark(
        f"{median(rates.engine):,.1f} images/s, eagerly {median(rates.eager):,.1f}: {median(rates.ratios):.2f} times "
        f"({min(rates.ratios):.2f} to {max(rates.ratios):.2f})"
    )


@pytest.mark.parametrize("size", ["tiny", "S"])
def test_where_a_step_goes(benchmark: BenchmarkFixture, note: Note, tmp_path: Path, size: str, threads: int) -> None:
    workload, steps = WORKLOADS[size], 5 if size == "tiny" else 2
    peak, bandwidth = machine.matmul_peak(), machine.copy_bandwidth()
    ways = {"eager": break_down_eager, "engine": break_down_engine}
    parts = benchmark.pedantic(lambda: {way: take_apart(workload, tmp_path / way, steps) for way, take_apart in ways.items()})
    note(**_described(workload), threads=threads, matmul_flops_per_second=peak, copy_bytes_per_second=bandwidth)
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
        note(**{way: groups})


@pytest.mark.filterwarnings("ignore::UserWarning")  # what the compiler leaves to eager kernels
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("size", ["tiny", "S"])
def test_compiled_blocks(
    benchmark: BenchmarkFixture,
    note: Note,
    remark: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: str,
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    torch.compiler.reset()
    rounds, steps = ROUNDS[size]
    plain = train_alone(WORKLOADS[size], tmp_path / "plain", min(rounds, 5), steps, compiled=False)
    compiled = benchmark.pedantic(
        lambda: train_alone(WORKLOADS[size], tmp_path / "compiled", min(rounds, 5), steps, compiled=True)
    )
    rates, plain_rates, first = compiled.images_per_second, plain.images_per_second, compiled.first_step
    note(**_described(WORKLOADS[size]), first_step=first, compiled=rates, engine=plain_rates)
    remark(f"{median(rates):,.1f} images/s, {median(plain_rates):,.1f} without, after a first step of {first:.0f} s")


def _described(workload: Workload) -> dict[str, int | str]:
    return {"size": workload.size, "batch": workload.batch, "tokens": workload.tokens, "channels": workload.channels}
