import pytest
import torch

from sfd_core.host.seeding import NOISE_BLOCK, batch_noise, generator


@pytest.mark.parametrize("size", [8, NOISE_BLOCK, 3 * NOISE_BLOCK + 7])
def test_noise_of_a_position_does_not_depend_on_who_draws_it(size: int) -> None:
    together = batch_noise(size, slice(0, size), (2, 3), 1, "noise", 5)
    assert together.shape == (size, 2, 3)
    for first, last in ((0, 1), (size // 3, size // 2 + 1), (size - 1, size)):
        assert torch.equal(batch_noise(size, slice(first, last), (2, 3), 1, "noise", 5), together[first:last])
    assert not torch.equal(batch_noise(size, slice(0, size), (2, 3), 1, "noise", 6), together)
    assert together.flatten().unique().numel() == together.numel()


def test_a_small_batch_is_one_draw_of_a_generator() -> None:
    expected = torch.randn(10, 4, generator=generator("a", 1))
    assert torch.equal(batch_noise(10, slice(0, 10), (4,), "a", 1), expected)
