import numpy as np
import pytest
import torch

from sfd_core.evaluation import neighbours
from sfd_core.evaluation.neighbours import nearest_images
from sfd_core.host.errors import DataError


def test_nearest_equals_numpy_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 16)
    generator = torch.Generator().manual_seed(0)
    reference, drawn = torch.randn(50, 2, 6, generator=generator), torch.randn(9, 6, generator=generator)
    rows = np.arange(50) * 3
    found = nearest_images(drawn, reference, rows, k=4)
    pairs = np.linalg.norm(drawn.numpy()[:, None, None] - reference.numpy()[None], axis=3)
    expected = np.argsort(pairs.min(axis=2), axis=1)[:, :4]
    np.testing.assert_array_equal(found.rows, rows[expected])
    np.testing.assert_allclose(found.distances, np.sort(pairs.min(axis=2), axis=1)[:, :4], rtol=1e-4)
    np.testing.assert_array_equal(found.mirrored, np.take_along_axis(pairs.argmin(axis=2) == 1, expected, axis=1))


@pytest.mark.parametrize("k", [0, 31])
def test_impossible_numbers_of_neighbours_are_refused(k: int) -> None:
    with pytest.raises(DataError, match="ask for 1 to 30"):
        nearest_images(torch.zeros(2, 5), torch.zeros(30, 2, 5), np.arange(30), k)
