import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from sfd_core.data.sources.crops import Pixels, centre_crop, decode_image, on_white, read_image
from sfd_core.host.errors import DataError


def published_crop(image: Image.Image, side: int) -> np.ndarray:
    """ADM's evaluation crop, told again from its description: halve by box, resize by bicubic, cut out the middle."""
    width, height = image.size
    while min(width, height) >= 2 * side:
        width, height = width // 2, height // 2
        image = image.resize((width, height), resample=Image.Resampling.BOX)
    factor = side / min(width, height)
    image = image.resize((round(width * factor), round(height * factor)), resample=Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


@pytest.mark.parametrize(
    "size",
    [
        (500, 375), (375, 500), (333, 500), (1024, 768), (1000, 701), (513, 300), (300, 127), (64, 200), (129, 128), (128, 129),
        (127, 64), (80, 71), (65, 64), (64, 64), (20, 30), (1, 9),
    ],
)  # fmt: skip
def test_it_is_the_crop_of_adm_to_the_last_bit(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    cropped = centre_crop(image, 64)
    assert cropped.dtype == np.uint8
    np.testing.assert_array_equal(cropped, published_crop(image, 64))
    if size == (64, 64):
        np.testing.assert_array_equal(cropped, pixels)


def test_the_centre_is_kept() -> None:
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = 255
    assert (centre_crop(Image.fromarray(pixels), 64) == 255).all()


def test_halving_averages_blocks_of_four() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    blocks = pixels.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(centre_crop(Image.fromarray(pixels), 32) - blocks).max() <= 1


def test_transparent_pixels_are_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 1), (255, 0, 0, 255))
    pixels = np.asarray(on_white(image))
    assert tuple(pixels[0, 0]) == (255, 255, 255)
    assert tuple(pixels[1, 1]) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_every_usual_mode_is_read_as_rgb(tmp_path: Path, mode: str) -> None:
    kind = "tiff" if mode in ("CMYK", "I;16") else "png"
    Image.new(mode, (5, 4)).save(tmp_path / f"image.{kind}")
    image = read_image(tmp_path / f"image.{kind}")
    assert (image.mode, image.size) == ("RGB", (5, 4))


RAMP = np.linspace(0, 65535, 20).astype(np.uint16).reshape(4, 5)


@pytest.mark.parametrize("kind", ["png", "tiff", "pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, kind: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / f"deep.{kind}")
    pixels = np.asarray(read_image(tmp_path / f"deep.{kind}"))
    expected = np.rint(RAMP / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(pixels, np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize("values", [RAMP.astype(np.float32) / 65535, RAMP.astype(np.int32) * 9])
def test_values_of_unknown_range_are_refused(tmp_path: Path, values: NDArray[Any]) -> None:
    Image.fromarray(values).save(tmp_path / "deep.tiff")
    with pytest.raises(DataError, match=r"deep\.tiff cannot be read as an image \(its mode [IF] has no fixed range"):
        read_image(tmp_path / "deep.tiff")


def tiff(path: Path, values: NDArray[Any], **tags: int) -> None:
    """Write a grey TIFF by hand: Pillow writes neither 12 bits nor signed values nor a white zero of 16 bits."""
    height, width = values.shape[0], tags.pop("width", values.shape[-1])
    data = values.tobytes()
    entries = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: len(data)}
    entries |= {int(tag): value for tag, value in tags.items()}
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    written = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + written + b"\0" * 4 + data)


def test_a_white_zero_is_white_with_any_depth(tmp_path: Path) -> None:
    for values in (np.array([[0, 128, 255]], np.uint8), np.array([[0, 128 * 257, 65535]], np.uint16)):
        tiff(tmp_path / "zero.tiff", values, **{"262": 0})
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "zero.tiff"))[0, :, 0], [255, 127, 0])
        tiff(tmp_path / "black.tiff", values)
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "black.tiff"))[0, :, 0], [0, 128, 255])


def test_values_with_a_sign_or_of_twelve_bits_are_refused(tmp_path: Path) -> None:
    tiff(tmp_path / "signed.tiff", np.array([[-1, 1]], np.int8), **{"339": 2})
    tiff(tmp_path / "twelve.tiff", np.array([[0, 128, 255]], np.uint8), **{"258": 12}, width=2)
    for name, why in (("signed", "have a sign"), ("twelve", "have 12 bits")):
        with pytest.raises(DataError, match=rf"{name}\.tiff cannot be read as an image \(its values {why}"):
            read_image(tmp_path / f"{name}.tiff")


def test_one_grey_of_sixteen_bits_is_transparent(tmp_path: Path) -> None:
    Image.fromarray(np.array([[30000, 30001, 0]], np.uint16)).save(tmp_path / "clear.png", transparency=30000)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "clear.png"))[0, :, 0], [255, 117, 0])


COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [90, 60, 30]]], np.uint8)


def save_palette(path: Path) -> Pixels:
    image = Image.new("P", (2, 2))
    image.putpalette(COLOURS.reshape(-1).tolist())
    image.putdata([0, 1, 2, 3])
    image.save(path, transparency=1)
    expected = COLOURS.copy()
    expected[0, 1] = 255
    return expected


def save_ink(path: Path) -> Pixels:
    ink = np.zeros((2, 2, 4), np.uint8)
    ink[0, 0], ink[1, 1] = (0, 255, 255, 0), (0, 0, 0, 255)
    Image.fromarray(ink, "CMYK").save(path)
    expected = np.full((2, 2, 3), 255, np.uint8)
    expected[0, 0], expected[1, 1] = (255, 0, 0), 0
    return expected


def save_half_transparent(path: Path) -> Pixels:
    Image.fromarray(np.array([[[100, 255], [100, 0]], [[100, 51], [0, 255]]], np.uint8), "LA").save(path)
    grey = np.array([[100, 255], [round(100 * 0.2 + 255 * 0.8), 0]], np.uint8)
    return np.stack([grey] * 3, axis=-1)


def save_bits(path: Path) -> Pixels:
    bits = np.array([[True, False], [False, True]])
    Image.fromarray(bits).save(path)
    return np.stack([bits.astype(np.uint8) * 255] * 3, axis=-1)


def save_turned(path: Path) -> Pixels:
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(COLOURS).save(path, exif=exif)
    return np.rot90(COLOURS, -1)


def save_profiled(path: Path) -> Pixels:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    Image.fromarray(COLOURS).save(path, icc_profile=profile)
    return COLOURS


def save_two_frames(path: Path) -> Pixels:
    first, second = Image.fromarray(COLOURS), Image.new("RGB", (2, 2))
    first.save(path, save_all=True, append_images=[second])
    return COLOURS


@pytest.mark.parametrize(
    ("save", "kind"),
    [
        (save_palette, "png"),
        (save_ink, "tiff"),
        (save_half_transparent, "png"),
        (save_bits, "png"),
        (save_turned, "png"),
        (save_turned, "tiff"),
        (save_profiled, "png"),
        (save_two_frames, "png"),
    ],
)
def test_every_kind_of_colour_has_its_rule(tmp_path: Path, save: Callable[[Path], Pixels], kind: str) -> None:
    expected = save(tmp_path / f"image.{kind}")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / f"image.{kind}")), expected)


@pytest.mark.parametrize(
    ("lay", "said"),
    [
        (lambda file: file.write_text("not an image"), "is not an image .*skip_unreadable"),
        (Path.touch, "is not an image"),
        (Path.mkdir, "cannot be read"),
        (lambda _: None, "does not exist"),
    ],
    ids=["text", "empty", "folder", "gone"],
)
def test_what_is_no_image_is_named(tmp_path: Path, lay: Callable[[Path], object], said: str) -> None:
    lay(tmp_path / "odd.png")
    with pytest.raises(DataError, match=rf"odd\.png {said}"):
        read_image(tmp_path / "odd.png")


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "bmp"])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"cut.{kind}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"cut\.{kind} .*skip_unreadable"):
        read_image(file)


class ReadWhileFiltersChange(io.BytesIO):
    """A file during whose reading another thread leaves `catch_warnings`, which puts back the filters of all threads."""

    def read(self, size: int | None = -1) -> bytes:
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        return super().read(size)


def test_an_image_of_hostile_size_is_refused_whatever_other_threads_do(monkeypatch: pytest.MonkeyPatch) -> None:
    file = ReadWhileFiltersChange()
    Image.new("L", (100, 100)).save(file, "png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_000)  # Pillow itself refuses twice as many
    with pytest.raises(DataError, match=r"huge\.png cannot be read .*exceeds limit"):
        decode_image(file, "huge.png")


def test_a_strip_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    for width in (100, 101):
        Image.new("L", (width, 1)).save(tmp_path / f"{width}.png")
    assert read_image(tmp_path / "100.png").size == (100, 1)
    with pytest.raises(DataError, match=r"101\.png cannot be read .*101x1 pixels are a strip"):
        read_image(tmp_path / "101.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_odd_values_beside_the_orientation_are_passed_over(tmp_path: Path, orientation: int) -> None:
    turn = (274, 3, 1, orientation)
    resolution = (0x11A, 1, 1, 0)  # a byte instead of a rational number
    entries = b"".join(struct.pack("<HHLL", *entry) for entry in (turn, resolution))
    odd = b"Exif\0\0II" + struct.pack("<HLH", 42, 8, 2) + entries + bytes(4)
    Image.fromarray(COLOURS).save(tmp_path / "odd.png", exif=odd)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(COLOURS).save(tmp_path / "plain.png", exif=exif)
    with Image.open(tmp_path / "plain.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "odd.png")), expected)


def test_whatever_pillow_raises_names_the_file(tmp_path: Path) -> None:
    # DirectDraw surface of a kind that Pillow does not know
    header = b"DDS " + struct.pack("<31I", 124, 0x1007, 2, 2, 0, 0, 0, *[0] * 11, 32, 0, 0, 0, 0, 0, 0, 0, *[0] * 5)
    (tmp_path / "odd.dds").write_bytes(header)
    with pytest.raises(DataError, match=r"odd\.dds cannot be read as an image .*skip_unreadable"):
        read_image(tmp_path / "odd.dds")
