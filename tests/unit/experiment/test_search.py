"""Draws of a search: from the ranges, the same when it is started again, and better than chance once it has learned."""

from itertools import pairwise
from typing import Any

import pytest

from sfd_core.experiment.grid import Method, Range
from sfd_core.experiment.params import parse_group
from sfd_core.experiment.search import Search
from sfd_core.host.errors import ConfigError

RANGES: dict[str, Range | list[Any]] = {
    "delta_t": Range(low=0.0, high=1.0),
    "learning_rate": Range(low=1e-4, high=1e-2, log=True),
    "train.optimisation.batch_size": Range(low=16, high=64, whole=True),
    "size": ["tiny", "S"],
}


def distance(values: Any) -> float:
    return float((values["delta_t"] - 0.3) ** 2)


def drawn(method: Method, seed: int = 0, rounds: int = 8) -> list[dict[str, Any]]:
    search, found = Search(RANGES, method, seed), []
    for _ in range(rounds):
        draws = search.ask(4)
        for draw in draws:
            search.tell(draw, distance(draw.values), {})
        found += [dict(draw.values) for draw in draws]
    return found


@pytest.mark.parametrize("method", ["tpe", "random", "even"])
def test_draws_lie_in_their_ranges_and_depend_on_the_seed_alone(method: Method) -> None:
    values = drawn(method)
    assert values == drawn(method) != drawn(method, seed=1)
    assert all(0 <= value["delta_t"] <= 1 and 1e-4 <= value["learning_rate"] <= 1e-2 for value in values)
    assert {type(value["train.optimisation.batch_size"]) for value in values} == {int}
    assert {value["size"] for value in values} == {"tiny", "S"}
    assert all(value["delta_t"] == float(f"{value['delta_t']:.3g}") for value in values)


@pytest.mark.parametrize("method", ["tpe", "random", "even"])
def test_draws_of_a_narrow_range_differ_inside_it_and_listed_values_are_exact(method: Method) -> None:
    listed = [0.9995, 1.2345]
    ranges: dict[str, Range | list[Any]] = {"train.ema_decay": Range(low=0.99, high=0.9999), "learning_rate": listed}
    values = [draw.values for draw in Search(ranges, method, 0).ask(64)]
    decays = {value["train.ema_decay"] for value in values}
    assert all(0.99 <= decay <= 0.9999 and len(f"{decay}") <= len("0.99123") for decay in decays)
    assert len(decays) > 50
    assert {value["learning_rate"] for value in values} == set(listed)


def largest_gap(method: Method) -> float:
    values = sorted(value["delta_t"] for value in drawn(method))
    return max(after - before for before, after in pairwise([0.0, *values, 1.0]))


def test_even_draws_leave_smaller_gaps_than_random_ones() -> None:
    assert largest_gap("even") < 0.08 < largest_gap("random")


def test_tpe_comes_nearer_to_the_best_than_it_began() -> None:
    values = [distance(value) for value in drawn("tpe", rounds=12)]
    assert sum(values[-12:]) < 0.5 * sum(values[:12])


def test_a_failed_draw_teaches_nothing_and_stops_nothing() -> None:
    search = Search(RANGES, "tpe", 0)
    for draw in search.ask(4):
        search.tell(draw, None, {})
    assert len(search.ask(4)) == 4


def test_impossible_ranges_are_refused() -> None:
    for key in ("prepare", "prepare.copies", "evaluate.final_samples"):
        with pytest.raises(ConfigError, match=f"differ in {key} do not compare"):
            Search({"delta_t": Range(low=0, high=1), key: [1, 2]}, "tpe", 0)
    with pytest.raises(ConfigError, match="needs at least one range"):
        Search({}, "random", 0)
    for values, problem in (
        ({"low": 1.0, "high": 0.0}, "is no range"),
        ({"low": 0.0, "high": 1.0, "log": True}, "is no range"),
        ({"low": 0.5, "high": 3.0, "whole": True}, "are not whole numbers"),
    ):
        with pytest.raises(ConfigError, match=problem):
            parse_group(Range, values, "the range")


def test_a_pruned_draw_teaches_by_its_losses_and_sets_no_limit() -> None:
    search = Search(RANGES, "tpe", 0)
    for number, draw in enumerate(search.ask(4)):
        search.tell(draw, 5.0 + number, {100: 1.0 + number, 200: 0.5})
    limits = search.highest_losses()
    assert limits == {100: 2.5, 200: 0.5}
    for draw in search.ask(4):
        search.tell(draw, None, {100: 9.0}, pruned=True)
    assert search.highest_losses() == limits
    assert len(search.ask(2)) == 2
