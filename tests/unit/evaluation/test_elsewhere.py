"""Images of other programs: read as they were written, measured as own ones, and refused where their numbers would mislead."""

import hashlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from evaluators import patterns, small_evaluator
from PIL import Image

from sfd_core.evaluation.elsewhere import ImagesElsewhere
from sfd_core.evaluation.export import write_npz, write_pngs
from sfd_core.host.errors import DataError

SIDE = 16
DRAWN = patterns(9, seed=1)


def as_npz(folder: Path) -> Path:
    write_npz(folder / "a.npz", [DRAWN.numpy()], np.zeros(9, np.int64), SIDE)
    return folder / "a.npz"


def as_pngs(folder: Path) -> Path:
    write_pngs(folder / "png", [DRAWN.numpy()])
    return folder / "png"


def as_class_folders(folder: Path) -> Path:
    for index, image in enumerate(DRAWN.numpy()):
        file = folder / "classes" / f"class {index // 5}" / f"{index:02d}.PNG"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(file)
    return folder / "classes"


@pytest.mark.parametrize("write", [as_npz, as_pngs, as_class_folders])
def test_numbers_are_those_of_the_same_images_drawn_here(write: Callable[[Path], Path], tmp_path: Path) -> None:
    evaluator = small_evaluator(tmp_path)
    numbers = ImagesElsewhere.open(write(tmp_path), SIDE).measure(evaluator)
    assert {name: number.value for name, number in numbers.items()} == evaluator.score(evaluator.features(DRAWN))
    protocol = numbers["fd_efficientnet_lite0"].protocol
    assert (protocol["samples"], protocol["seed"], protocol["recipe"], protocol["sampler"]) == (9, None, None, "unknown")
    assert protocol["images"].endswith(f", sha256 of its pixels {hashlib.sha256(DRAWN.numpy()).hexdigest()}")


def spoiled(image: Image.Image, folder: Path, name: str = "07.png") -> Path:
    path = as_pngs(folder)
    image.save(path / name)
    return path


def sixteen_bits(folder: Path) -> Path:
    """Replace one image by a PNG file of 16 bits a colour, which Pillow does not write."""
    path = as_pngs(folder)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\x80\xff" * 3 * SIDE) * SIDE)
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    stored = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    (path / "07.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(stored))
    return path


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda folder: folder / "gone.npz", "gone.npz does not exist; give an .npz"),
        (lambda folder: spoiled(Image.new("RGB", (SIDE, 8)), folder), r"07.png has 16x8 pixels, but prepare.resolution is 16"),
        (
            lambda folder: spoiled(Image.new("RGBA", (SIDE, SIDE)), folder),
            "07.png is stored in Pillow's mode RGBA instead of RGB",
        ),
        (sixteen_bits, "07.png is stored in Pillow's mode RGB;16B instead of RGB"),
        (lambda folder: spoiled(Image.new("RGB", (SIDE, SIDE)), folder, "07.jpg"), "07.jpg is no PNG file, and a lossy one"),
    ],
)
def test_images_that_cannot_be_measured_are_named_before_any_is_read(
    write: Callable[[Path], Path], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        ImagesElsewhere.open(write(tmp_path), SIDE)


def test_archives_of_another_size_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.npz has 16x16 pixels, but prepare.resolution is 32"):
        ImagesElsewhere.open(as_npz(tmp_path), 32)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty is empty; give an \.npz"):
        ImagesElsewhere.open(tmp_path / "empty", SIDE)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = as_pngs(tmp_path) / "000003.png"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"000003\.png is damaged"):
        list(ImagesElsewhere.open(file.parent, SIDE).blocks(4))
