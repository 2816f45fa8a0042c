"""Image files to square RGB arrays: decoding with clear errors, and the centre crop of ADM.

Of several frames the first counts. Images are turned upright by their EXIF orientation; colour profiles are not applied.
Transparent areas are white. Values of 16 bits are scaled to 8; floating point, 32-bit and signed integers and 12 bits, whose
range is unknown or not kept, are refused.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

from sfd_core.host.errors import DataError

Pixels = NDArray[np.uint8]

SIXTEEN_BITS = frozenset({"PNG", "PPM"})
"""Formats whose images of Pillow's mode I have 16 bits."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the image upright."""
SIGNED = 2
"""Of a TIFF file's sample format."""
LONGEST = 100
"""Times the short side. At a short side of 256, a line of 1x10,000 pixels has 2 GB."""
REMEDY = "remove or replace it, or set prepare.skip_unreadable to true to skip such files"


def read_image(path: Path) -> Image.Image:
    """Return the image of a file; see `decode_image`."""
    return decode_image(path, str(path))


def decode_image(source: Path | io.BytesIO, name: str) -> Image.Image:
    """Return the image of a file, or of a file's bytes, upright, as RGB with transparency on white.

    Raises `DataError` with `name` if it cannot be read, is truncated, is no image, or has values of unknown range.
    """
    # Pillow warns about oddities in files that it can read; `catch_warnings` is not for threads
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with Image.open(source) as image:
            _require_size(image)
            image.load()
            return on_white(_upright(_in_eight_bits(image)))
    except MemoryError:
        raise  # a lack of the machine, not of the file
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image in a format that Pillow reads; {REMEDY}") from error
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist; run again to list the folder anew") from error
    except Exception as error:  # Pillow raises almost anything for damaged values
        raise DataError(f"{name} cannot be read as an image ({error}); {REMEDY}") from error


def _require_size(image: Image.Image) -> None:
    """Raise `ValueError` for strips, and for sizes that Pillow only warns about: which thread's filters see that is chance."""
    most, found = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if most is not None and found > most:
        raise ValueError(f"image size ({found} pixels) exceeds limit of {most} pixels, could be decompression bomb")
    if max(image.size) > LONGEST * min(image.size):
        raise ValueError(f"its {image.width}x{image.height} pixels are a strip, of which a square crop would fill the memory")


def _upright(image: Image.Image) -> Image.Image:
    """Return an image turned by its EXIF orientation.

    `ImageOps.exif_transpose` writes all EXIF values again, too, and fails for odd ones in readable files.
    """
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of 16-bit grey with 8 bits; any other as it is. Raises `ValueError` for values of unknown range."""
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BITS)
    if image.mode in ("I", "F") and not deep:
        raise ValueError(f"its mode {image.mode} has no fixed range; save it with 8 or 16 bits")
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if other := {*tags.get(BITSPERSAMPLE, ())} - {1, 2, 4, 8, 16}:
        raise ValueError(f"its values have {min(other)} bits; save it with 8 or 16 bits")
    if SIGNED in tags.get(SAMPLEFORMAT, ()):
        raise ValueError("its values have a sign; save it without")
    if not deep:
        return image
    values = np.asarray(image).astype(np.float64)
    white_is_zero = tags.get(PHOTOMETRIC_INTERPRETATION) == 0  # Pillow inverts only images of 8 bits
    scaled = np.rint((65535 - values if white_is_zero else values) / 257).clip(0, 255)
    grey = Image.fromarray(scaled.astype(np.uint8))
    if "transparency" in image.info:  # a value of 16 bits
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    grey.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return grey


def on_white(image: Image.Image) -> Image.Image:
    """Return `image` as RGB with transparent areas in white."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")


def centre_crop(image: Image.Image, side: int) -> Pixels:
    """Return the central square of an RGB image as (side, side, 3) uint8.

    The image is halved with a box filter while its short side is at least `2 * side`, resized to a short side of `side` with
    a bicubic filter, then cropped. Source: the evaluation preprocessing of ADM (Dhariwal and Nichol 2021,
    arXiv 2105.05233), which DiT, SiT and SFD train on.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])
