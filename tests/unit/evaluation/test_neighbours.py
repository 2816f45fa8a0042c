import numpy as np
import pytest
import torch

from sfd_core.evaluation import neighbours
from sfd_core.evaluation.neighbours import nearest_images, neighbour_sheet
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


def test_a_training_image_and_its_mirror_image_find_themselves() -> None:
    reference = torch.randn(30, 2, 5, generator=torch.Generator().manual_seed(1))
    found = nearest_images(torch.stack([reference[4, 0], reference[7, 1]]), reference, np.arange(30), k=1)
    assert found.rows.tolist() == [[4], [7]]
    assert found.mirrored.tolist() == [[False], [True]]
    assert found.distances.max() < 1e-2


@pytest.mark.parametrize("k", [0, 31])
def test_impossible_numbers_of_neighbours_are_refused(k: int) -> None:
    with pytest.raises(DataError, match="ask for 1 to 30"):
        nearest_images(torch.zeros(2, 5), torch.zeros(30, 2, 5), np.arange(30), k)


def test_sheet_shows_the_image_first_and_mirrors_what_was_found_mirrored() -> None:
    images = np.zeros((1, 3, 4, 4), dtype=np.uint8)
    train = np.full((1, 2, 3, 4, 4), 100, dtype=np.uint8)
    train[..., 0] = 200
    nearest = neighbours.Nearest(np.array([[5, 6]]), np.array([[False, True]]), np.zeros((1, 2), dtype=np.float32))
    sheet = neighbour_sheet(images, train, nearest, gap=2)
    assert sheet.shape == (8, 3 * 6 + 4, 3)
    assert (sheet[2:6, 2:6] == 0).all()
    assert sheet[2, 10:14, 0].tolist() == [200, 100, 100, 100]
    assert sheet[2, 16:20, 0].tolist() == [100, 100, 100, 200]
