import csv
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sfd_core.host.errors import NumericsError
from sfd_core.training.guards import NEIGHBOURS, SKIPPED_IN_A_ROW_LIMIT, Guard, Incidents, StepNumbers


class Task:
    model = nn.Identity()
    order = SimpleNamespace(rows=lambda step: torch.tensor([step, step + 1]))

    def batch(self, step: int, part: slice) -> Mapping[str, Tensor]:
        return {}

    def loss(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {}


def guard(path: Path) -> Guard:
    return Guard("test", 0.1, Incidents(path), Task())


def numbers(loss: float, norm: float = 1.0) -> dict[str, float]:
    return {"loss": loss, "gradient_norm": norm}


def incidents(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_loss_far_above_its_neighbours_is_noted_with_the_images_of_its_batch(tmp_path: Path) -> None:
    watching = guard(tmp_path / "incidents.csv")
    told: list[str] = []
    watching.log = told.append
    for step in range(NEIGHBOURS):
        assert watching.check(step, numbers(1.0 + 0.01 * (step % 5)))
    assert watching.check(NEIGHBOURS, numbers(1.1))
    assert watching.spikes == 0
    assert watching.check(NEIGHBOURS + 1, numbers(9.0))
    (row,) = incidents(tmp_path / "incidents.csv")
    assert (row["step"], row["kind"], row["loss"], row["rows"]) == (str(NEIGHBOURS + 2), "spike", "9.0", "101 102")
    assert float(row["usual_loss"]) == pytest.approx(1.02)
    assert len(told) == watching.spikes == 1


@pytest.mark.parametrize("bad", [numbers(math.nan), numbers(1.0, math.inf)])
def test_what_is_not_finite_is_skipped_noted_and_after_many_in_a_row_the_end(tmp_path: Path, bad: dict[str, float]) -> None:
    watching = guard(tmp_path / "incidents.csv")
    for step in range(SKIPPED_IN_A_ROW_LIMIT - 1):
        assert not watching.check(step, bad)
    assert watching.check(20, numbers(1.0))
    for step in range(SKIPPED_IN_A_ROW_LIMIT - 1):
        assert not watching.check(30 + step, bad)
    with pytest.raises(NumericsError, match=r"lower learning_rate 0\.1"):
        watching.check(50, bad)
    assert {row["kind"] for row in incidents(tmp_path / "incidents.csv")} == {"skipped"}
    assert watching.skipped == 2 * SKIPPED_IN_A_ROW_LIMIT - 1


def test_a_resumed_guard_goes_on_as_the_first_would_have(tmp_path: Path) -> None:
    first, second = guard(tmp_path / "a.csv"), guard(tmp_path / "b.csv")
    for step in range(NEIGHBOURS + 3):
        first.check(step, numbers(1.0 + 0.01 * (step % 7) if step != 40 else math.nan))
    second.restore(first.state())
    for watching in (first, second):
        watching.check(NEIGHBOURS + 4, numbers(5.0))
    assert first.state() == second.state()
    assert (second.skipped, second.spikes) == (1, 1)


def test_incidents_of_steps_that_are_repeated_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "incidents.csv"
    watching = guard(path)
    watching.forget_beyond(0)
    assert incidents(path) == []
    for step in (3, 4, 5):
        watching.check(step, numbers(math.nan))
    path.write_text(path.read_text() + "12,skip")
    watching.forget_beyond(5)
    assert [row["step"] for row in incidents(path)] == ["4", "5"]


@pytest.mark.parametrize(("device", "due"), [("cpu", 4), ("cuda", 2)])
def test_numbers_of_steps_arrive_in_order_on_a_gpu_two_steps_late(device: str, due: int) -> None:
    coming = StepNumbers(torch.device(device))
    for step in range(4):
        coming.put(step, ["loss"], torch.tensor([float(step)]))
    expected = [(step, {"loss": float(step)}) for step in range(4)]
    assert list(coming.due()) == expected[:due]
    assert list(coming.due()) == []
    assert list(coming.all()) == expected[due:]


@pytest.mark.parametrize(("loss", "spikes"), [(2.25, 0), (2.2500001, 1)])
def test_a_spike_is_more_than_ten_median_deviations_above_the_median_of_a_hundred(
    tmp_path: Path, loss: float, spikes: int
) -> None:
    watching = guard(tmp_path / "incidents.csv")
    for step in range(100):
        watching.check(step, numbers(0.875 if step % 2 else 1.125))
    # median 1, median deviation 0.125
    watching.check(100, numbers(loss))
    assert watching.spikes == spikes


def test_before_a_hundred_losses_and_among_equal_ones_nothing_is_a_spike(tmp_path: Path) -> None:
    young = guard(tmp_path / "a.csv")
    for step in range(99):
        young.check(step, numbers(1.0 + step % 2))
    young.check(99, numbers(1e9))
    assert young.spikes == 0
    young.check(100, numbers(1e9))
    assert young.spikes == 1
    equal = guard(tmp_path / "b.csv")
    for step in range(100):
        equal.check(step, numbers(1.0))
    equal.check(100, numbers(1.0))
    assert equal.spikes == 0


def test_old_losses_are_forgotten(tmp_path: Path) -> None:
    watching = guard(tmp_path / "incidents.csv")
    for step in range(300):
        watching.check(step, numbers(1.0 + 0.01 * (step % 3)))
    assert len(watching.state()["losses"]) == 100


def test_a_skipped_step_is_noted_with_the_median_so_far(tmp_path: Path) -> None:
    watching = guard(tmp_path / "incidents.csv")
    watching.check(0, numbers(math.nan, 3.0))
    for step, loss in enumerate((1.0, 2.0, 4.0), start=1):
        watching.check(step, numbers(loss))
    watching.check(4, numbers(1.0, math.inf))
    first, second = incidents(tmp_path / "incidents.csv")
    assert (first["step"], first["loss"], first["gradient_norm"], first["usual_loss"]) == ("1", "nan", "3.0", "nan")
    assert (second["step"], second["gradient_norm"], second["usual_loss"], second["rows"]) == ("5", "inf", "2.0", "4 5")
    assert watching.state()["in_a_row"] == 1


def test_a_process_without_a_file_of_incidents_counts_all_the_same() -> None:
    watching = Guard("test", 0.1, None, Task())
    watching.forget_beyond(0)
    assert not watching.check(0, numbers(math.nan))
    assert watching.skipped == 1
