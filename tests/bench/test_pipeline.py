"""Seconds of a `dvc repro` that has nothing to do."""

import pytest
from projects import Project
from pytest_benchmark.fixture import BenchmarkFixture

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]


def test_idle_repro(benchmark: BenchmarkFixture, reproduced: Project) -> None:
    ended = benchmark.pedantic(lambda: reproduced.run("dvc", "repro"), rounds=5, warmup_rounds=1)
    assert "Data and pipelines are up to date." in ended.stdout
