"""The order of batches: whole epochs, a function of seed and step."""

import pytest
import torch

from sfd_core.host.errors import ConfigError
from sfd_core.host.seeding import generator
from sfd_core.training.batches import BatchOrder


def test_a_step_can_be_asked_for_alone() -> None:
    order = BatchOrder(images=10, batch_size=4, seed=3)
    in_turn = [order.rows(step) for step in range(9)]
    assert torch.equal(BatchOrder(images=10, batch_size=4, seed=3).rows(8), in_turn[8])
    assert torch.equal(order.rows(2), in_turn[2])
    assert torch.equal(order.mirrored(5), BatchOrder(images=10, batch_size=4, seed=3).mirrored(5))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size 11 is larger than the data set of 10"):
        BatchOrder(images=10, batch_size=11, seed=0)


def test_a_batch_may_be_the_whole_data_set_or_span_many_epochs() -> None:
    order = BatchOrder(images=10, batch_size=10, seed=0)
    assert [sorted(order.rows(step).tolist()) for step in range(3)] == [list(range(10))] * 3


def test_the_order_of_an_epoch_and_the_mirroring_of_a_step_follow_from_the_seed() -> None:
    order = BatchOrder(images=10, batch_size=4, seed=5)
    epochs = torch.cat([torch.randperm(10, generator=generator(5, "order", epoch)) for epoch in range(3)])
    assert torch.equal(torch.cat([order.rows(step) for step in range(7)]), epochs[:28])
    assert torch.equal(order.rows(6), epochs[24:28])
    assert torch.equal(order.rows(0), epochs[:4])
    many = BatchOrder(images=99, batch_size=99, seed=5)
    assert torch.equal(many.mirrored(3), torch.rand(99, generator=generator(5, "mirror", 3)) < 0.5)


def test_an_order_that_another_thread_replaces_at_once_is_returned_all_the_same() -> None:
    class Shared(BatchOrder):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, {} if name == "_orders" else value)

    assert Shared(10, 4, 0).rows(7).tolist() == BatchOrder(10, 4, 0).rows(7).tolist()
