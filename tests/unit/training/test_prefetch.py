"""Batches made ahead: in order, two at a time, and none after the last step."""

import threading
import time
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from sfd_core.training.prefetch import Prefetcher

CPU = torch.device("cpu")


class Maker:
    """Makes batches that hold their step, and remembers which it was asked for."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked: list[int] = []
        self.seconds = seconds

    def __call__(self, step: int) -> list[Mapping[str, Tensor]]:
        self.asked.append(step)
        time.sleep(self.seconds)
        return [{"x": torch.tensor([step, part])} for part in range(2)]

    def wait_for(self, count: int) -> list[int]:
        deadline = time.monotonic() + 20
        while len(self.asked) < count and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)  # one too many would come at once
        return list(self.asked)


def test_batches_come_in_the_order_of_steps_with_all_their_parts() -> None:
    make = Maker()
    with Prefetcher.running(make, 3, 8, CPU) as batches:
        found = [[part["x"].tolist() for part in batches.next()] for _ in range(5)]
    assert found == [[[step, 0], [step, 1]] for step in range(3, 8)]
    assert make.asked == [3, 4, 5, 6, 7]


def test_two_batches_are_made_before_they_are_asked_for() -> None:
    make = Maker()
    with Prefetcher.running(make, 0, 10, CPU) as batches:
        batches.next()
        assert make.wait_for(3) == [0, 1, 2]


def test_nothing_is_made_after_the_last_step_and_the_thread_ends() -> None:
    make, before = Maker(), threading.enumerate()
    with Prefetcher.running(make, 0, 1, CPU) as batches:
        batches.next()
        with pytest.raises(StopIteration):
            batches.next()
    assert make.asked == [0]
    assert threading.enumerate() == before


def test_waiting_for_a_batch_is_counted() -> None:
    with Prefetcher.running(Maker(seconds=0.05), 0, 3, CPU) as batches:
        assert batches.waited == 0.0
        batches.next()
        first = batches.waited
        batches.next()
    assert first > 0.03
    assert batches.waited > first


def test_an_error_of_a_batch_reaches_the_step_that_needs_it() -> None:
    def make(step: int) -> list[Mapping[str, Tensor]]:
        if step == 1:
            raise ValueError("no such image")
        return [{"x": torch.zeros(1)}]

    with Prefetcher.running(make, 0, 3, CPU) as batches:
        batches.next()
        with pytest.raises(ValueError, match="no such image"):
            batches.next()
