import base64
import io

import numpy as np
from PIL import Image

from sfd_core.reporting.pictures import LARGEST_SIDE, data_uri, sheet, thinned, thumbnails


def test_sheet_puts_time_downwards_and_images_to_the_right() -> None:
    frames = np.arange(2 * 3 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 3, 4, 4)
    laid = sheet(frames)
    assert laid.shape == (8, 12, 3)
    for step in range(2):
        for index in range(3):
            tile = laid[4 * step : 4 * step + 4, 4 * index : 4 * index + 4]
            assert np.array_equal(tile, frames[step, index].transpose(1, 2, 0))


def test_png_data_uri_is_exact() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    kind, _, content = data_uri(picture, "png").partition(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), picture)


def test_large_images_become_small_and_small_ones_stay() -> None:
    assert thumbnails(np.zeros((2, 1, 3, 256, 256), np.uint8)).shape == (2, 1, 3, 128, 128)
    small = np.zeros((2, 1, 3, 64, 64), np.uint8)
    assert thumbnails(small) is small


def test_thinning_keeps_both_ends_within_the_largest_side() -> None:
    kept = thinned(1000, 128)
    assert kept[0] == 0
    assert kept[-1] == 999
    assert len(kept) * 128 <= LARGEST_SIDE
    assert np.array_equal(thinned(41, 64), np.arange(41))
