"""Points of the cost law, each in a process of its own; `performance_page` fits and plots them."""

from dataclasses import asdict

import pytest
from bench.cost_law import Point, in_own_process
from pytest_benchmark.fixture import BenchmarkFixture

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

AXES: dict[str, list[tuple[str, int, int]]] = {
    "parameters": [("tiny", 8, 8), ("S", 8, 8), ("B", 8, 8)],
    "tokens": [("S", 4, 8), ("S", 8, 8), ("S", 16, 8)],
    "batch": [("S", 8, 2), ("S", 8, 4), ("S", 8, 8), ("S", 8, 16), ("S", 8, 32)],
}
"""Axis -> size, grid and batch of its points; everything besides the axis stays the same."""
ROWS = [1_000, 10_000, 100_000, 1_000_000]
_MEASURED: dict[tuple[str, int, int], Point] = {}
"""Axes share a point."""


def step(size: str, grid: int, batch: int) -> Point:
    key = size, grid, batch
    if key not in _MEASURED:
        _MEASURED[key] = in_own_process("step", "--size", size, "--grid", grid, "--batch", batch)
    return _MEASURED[key]


@pytest.mark.parametrize("axis", AXES)
def test_a_step_by(benchmark: BenchmarkFixture, axis: str) -> None:
    points = benchmark.pedantic(lambda: [step(*point) for point in AXES[axis]])
    benchmark.extra_info.update(axis=axis, points=[asdict(point) for point in points])


def test_reading_by_rows(benchmark: BenchmarkFixture) -> None:
    points = benchmark.pedantic(lambda: [in_own_process("reading", "--rows", rows) for rows in ROWS])
    benchmark.extra_info.update(axis="rows", points=[asdict(point) for point in points])
