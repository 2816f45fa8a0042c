"""Images out of the program: what other programs read is what was drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfd_core.evaluation.export import require_new_folder, write_npz, write_pngs
from sfd_core.host.errors import ConfigError

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 3, 5, 5), dtype=np.uint8)
BATCHES = [IMAGES[:3], IMAGES[3:6], IMAGES[6:]]


def test_an_npz_holds_images_with_channels_last_and_labels(tmp_path: Path) -> None:
    labels = np.arange(7, dtype=np.int64) % 3
    write_npz(tmp_path / "a" / "samples.npz", BATCHES, labels, 5)
    with np.load(tmp_path / "a" / "samples.npz", allow_pickle=False) as saved:
        assert saved["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(saved["arr_0"], IMAGES.transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(saved["arr_1"], labels)


def test_pngs_are_numbered_in_the_drawn_order(tmp_path: Path) -> None:
    write_pngs(tmp_path / "png", BATCHES)
    files = sorted((tmp_path / "png").iterdir())
    assert [file.name for file in files] == [f"{index:06d}.png" for index in range(7)]
    for file, image in zip(files, IMAGES, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)).transpose(2, 0, 1), image)


def test_a_broken_off_export_leaves_nothing(tmp_path: Path) -> None:
    def broken():
        yield IMAGES[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pngs(tmp_path / "png", broken())
    with pytest.raises(KeyboardInterrupt):
        write_npz(tmp_path / "samples.npz", broken(), np.arange(7), 5)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_not_replaced(tmp_path: Path) -> None:
    require_new_folder(tmp_path / "new")
    require_new_folder(tmp_path)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ConfigError, match="would be replaced"):
        require_new_folder(tmp_path)
