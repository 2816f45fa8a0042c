import numpy as np
import pytest
import torch

from sfd_core.evaluation import neighbours
from sfd_core.evaluation.neighbours import Nearest, nearest_images, neighbour_sheet
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


def test_all_training_images_can_be_neighbours_and_come_nearest_first() -> None:
    reference = torch.tensor([[[4.0, 0.0], [9.0, 0.0]], [[8.0, 0.0], [1.0, 0.0]], [[0.0, 3.0], [0.0, 7.0]]])
    found = nearest_images(torch.zeros(1, 2), reference, np.array([10, 20, 30]), k=3)
    assert found.rows.tolist() == [[20, 30, 10]]
    assert found.mirrored.tolist() == [[True, False, False]]
    np.testing.assert_allclose(found.distances, [[1.0, 3.0, 4.0]], rtol=1e-5)


@pytest.mark.parametrize("gap", [2, 4])
def test_a_sheet_has_a_row_for_each_image_and_white_between_all(gap: int) -> None:
    chance = np.random.default_rng(0)
    images = chance.integers(0, 255, (2, 3, 5, 5), dtype=np.uint8)
    train = chance.integers(0, 255, (2, 2, 3, 5, 5), dtype=np.uint8)
    nearest = Nearest(np.array([[1, 2], [3, 4]]), np.array([[False, True], [True, False]]), np.zeros((2, 2), np.float32))
    sheet = neighbour_sheet(images, train, nearest, *([] if gap == 4 else [gap]))
    white = lambda height, width: np.full((height, width, 3), 255, np.uint8)  # noqa: E731
    width = 3 * (5 + gap) + 2 * gap
    rows = [white(gap, width)]
    for image, drawn, mirrored in zip(images, train, nearest.mirrored, strict=True):
        shown = [tile[..., ::-1] if turned else tile for tile, turned in zip(drawn, mirrored, strict=True)]
        first, *others = (tile.transpose(1, 2, 0) for tile in (image, *shown))
        between = [part for tile in others for part in (white(5, gap), tile)]
        rows += [np.concatenate([white(5, gap), first, white(5, gap), *between, white(5, gap)], axis=1), white(gap, width)]
    np.testing.assert_array_equal(sheet, np.concatenate(rows))
