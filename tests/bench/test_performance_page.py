"""Results become tables between the page's markers; what is not measured leaves no table."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench.cost_law import STATE_BYTES, measure_reading, measure_step, slope
from bench.operations import GROUPS, MATRIX, OPTIMISER, OUTSIDE, Profiler, SavedBytes, WorkCounter
from bench.performance_page import TABLES, cost_law_figure, fill, main, merge
from torch import nn, optim, zeros

from infra.bench import machine
from infra.bench.workload import Workload
from sfd_core.host.errors import DataError

ROOT = Path(__file__).parents[2]
PAGE = "# Title\n\nBy hand.\n\n<!-- table: training -->\nold\n<!-- end -->\n\nMore.\n<!-- table: data -->\n<!-- end -->\n"
TRAINING = {
    "size": "S", "channels": 48, "tokens": 64, "batch": 16, "threads": 2, "eager": [10.0, 11.0, 12.0],
    "engine": [15.0, 16.5, 18.6], "ratios": [1.5, 1.5, 1.55],
}  # fmt: skip


def run_of(name: str, file: str, extra: dict[str, Any], when: str = "2026-01-01T00:00:00") -> dict[str, Any]:
    """What pytest-benchmark writes, as far as it is read."""
    result = {
        "name": name,
        "fullname": f"tests/bench/{file}::{name}",
        "stats": {"median": 2.0, "rounds": 3},
        "extra_info": extra,
    }
    facts = machine.facts() | {"processors_busy_with_others": 0.25}
    return {"datetime": when, "commit_info": {"id": "0123456789abcdef", "dirty": True}, "facts": facts, "benchmarks": [result]}


def point(axis: str, x: float, seconds: float, memory: int | None) -> dict[str, Any]:
    expected = {"expected_seconds": x / 10, "expected_memory": None if memory is None else 100 * x}
    return {"x": {axis: x}, "seconds": seconds, "images_per_second": 4 / seconds, "memory": memory, **expected}


def test_tables_are_written_anew_and_prose_stays() -> None:
    kept = merge({}, run_of("test_engine_against_an_eager_loop[S]", "test_training.py", TRAINING))
    page = fill(PAGE, kept)
    assert page.startswith("# Title\n\nBy hand.\n")
    assert "\n\nMore.\n" in page
    assert "| S | 48 | 64 | 16 | 2 | 11.0 | 16.5 | **1.50** | 1.50 to 1.55 | 3 |\n" in page
    assert "commit 01234567+" in page
    assert "kept 0.25 cores busy" in page
    assert "old" not in page
    assert page.endswith("<!-- table: data -->\n<!-- end -->\n")
    assert fill(page, kept) == page


def test_a_marker_without_a_table_is_refused() -> None:
    with pytest.raises(DataError, match=r"marks a table 'trainings'.*training, profile"):
        fill("<!-- table: trainings -->\n<!-- end -->", {"runs": {}, "results": {}})


def test_a_later_run_replaces_only_what_it_measured() -> None:
    first = merge({}, run_of("test_a", "test_metrics.py", {"per_second": 1.0}))
    both = merge(first, run_of("test_b", "test_metrics.py", {"per_second": 2.0}, "2026-01-02T00:00:00"))
    assert {name: result["per_second"] for name, result in both["results"].items()} == {"test_a": 1.0, "test_b": 2.0}
    assert len(both["runs"]) == 2
    again = merge(both, run_of("test_a", "test_metrics.py", {"per_second": 3.0}, "2026-01-02T00:00:00"))
    assert again["results"]["test_a"]["per_second"] == 3.0
    assert list(again["runs"]) == ["2026-01-02T00:00:00"]


def test_page_results_and_figure_are_written_side_by_side(tmp_path: Path) -> None:
    points = [point("batch", x, seconds=x / 5, memory=int(250 * x)) for x in (1, 2, 4)]
    measured = run_of("test_a_step_by[batch]", "test_cost_law.py", {"axis": "batch", "points": points})
    (tmp_path / "run.json").write_text(json.dumps(measured))
    page = tmp_path / "performance.md"
    page.write_text("<!-- table: cost-law -->\n<!-- end -->\n")
    main([str(tmp_path / "run.json"), "--page", str(page)])
    assert "| images a step | 1 to 4 | seconds | +1.00 | +1.00 | 2.00 |\n" in page.read_text()
    assert "| images a step | 1 to 4 | images/second | -1.00 |" in page.read_text()
    assert (tmp_path / "cost_law.png").read_bytes().startswith(b"\x89PNG")
    assert list(json.loads((tmp_path / "performance.json").read_text())["results"]) == ["test_a_step_by[batch]"]


def test_every_axis_has_a_column_and_what_is_not_measured_no_curve() -> None:
    step = {"axis": "tokens", "points": [point("tokens", x, x, 10) for x in (1, 2)]}
    reading = {"axis": "rows", "points": [point("rows", x, 1.0, None) for x in (1, 2)]}
    panels = cost_law_figure({"a": reading, "b": step}).axes
    assert [len(panel.lines) for panel in panels] == [2, 2, 2, 2, 2, 0]


def test_the_committed_page_marks_every_table_once() -> None:
    marked = [line.split()[2] for line in (ROOT / "docs" / "performance.md").read_text().splitlines() if "<!-- table:" in line]
    assert sorted(marked) == sorted(TABLES)


def test_slopes_are_those_of_powers() -> None:
    assert slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_work_is_counted_by_group() -> None:
    model = nn.Linear(8, 4, bias=False)
    optimizer = optim.AdamW(model.parameters(), fused=True)
    model(zeros(2, 8)).sum().backward()
    optimizer.step()  # makes its state
    optimizer.zero_grad()
    with WorkCounter() as counter, SavedBytes(model) as saved:
        model(zeros(2, 8)).square().sum().backward()
        optimizer.step()
    assert counter.work[MATRIX].flops == 2 * (2 * 2 * 8 * 4)
    assert saved.bytes == 4 * (2 * 8 + 2 * 4)
    weight = 4 * 8 * 4
    assert counter.work[OPTIMISER].traffic == pytest.approx(7 * weight, abs=16)  # and the number of the step


def test_a_profile_tells_the_groups_apart() -> None:
    model = nn.Linear(64, 64)
    optimizer = optim.AdamW(model.parameters(), fused=True)
    model(zeros(64, 64)).sum().backward()
    profiler = Profiler()
    profiler.start()
    model(zeros(64, 64)).sum().backward()
    optimizer.step()
    seconds = profiler.stop(steps=1)
    assert list(seconds) == [*GROUPS, OUTSIDE]
    assert seconds[MATRIX] > 0
    assert seconds[OPTIMISER] > 0


def test_a_point_of_the_cost_law_has_its_place_and_what_is_expected_there(tmp_path: Path) -> None:
    step = measure_step(Workload("tiny", batch=4, grid=4, images=8), tmp_path)
    assert step.x["tokens"] == 16
    assert step.x["batch"] == 4
    assert step.images_per_second == pytest.approx(4 / step.seconds)
    assert step.expected_memory is not None
    assert step.expected_memory > STATE_BYTES * step.x["parameters"]
    assert step.expected_seconds > 0


def test_reading_is_measured_out_of_a_data_set_that_is_not_on_the_disk(tmp_path: Path) -> None:
    point = measure_reading(100_000, tmp_path / "shard")
    assert point.x == {"rows": 100_000}
    assert point.seconds > 0
    on_disk = sum(512 * file.stat().st_blocks for file in (tmp_path / "shard").iterdir())
    assert on_disk < 1e6
