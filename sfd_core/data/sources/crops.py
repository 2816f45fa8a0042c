"""Image files to square RGB arrays: decoding with clear errors, and the centre crop of ADM."""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sfd_core.host.errors import DataError

Pixels = NDArray[np.uint8]

REMEDY = "remove or replace it, or set prepare.skip_unreadable to true to skip such files"


def read_image(path: Path) -> Image.Image:
    """Return the image of a file; see `decode_image`."""
    return decode_image(path, str(path))


def decode_image(source: Path | io.BytesIO, name: str) -> Image.Image:
    """Return the image of a file, or of a file's bytes, as RGB with transparency on white.

    Raises `DataError` with `name` if it cannot be read, is truncated, or is no image.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns about oddities in files that it can read; only a huge image is an error.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                image.load()
                return on_white(image)
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image in a format that Pillow reads; {REMEDY}") from error
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist; run again to list the folder anew") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} cannot be read as an image ({error}); {REMEDY}") from error


def on_white(image: Image.Image) -> Image.Image:
    """Return `image` as RGB with transparent areas in white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
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
