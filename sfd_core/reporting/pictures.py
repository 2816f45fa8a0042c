"""Arrays of small images to sprite sheets, and sheets to data URIs, so that the page needs no other file.

Legend: T time steps, N images, R side in pixels.
"""

import base64
import io
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

LARGEST_TILE = 128
"""Larger images are scaled down to this side in the page."""
LARGEST_SIDE = 16000
"""WebP and canvases end at 16383 pixels."""


def thumbnails(images: Pixels) -> Pixels:
    """Scale images (..., 3, R, R) down to `LARGEST_TILE` where they are larger."""
    side = images.shape[-1]
    if side <= LARGEST_TILE:
        return images
    flat = images.reshape(-1, *images.shape[-3:]).transpose(0, 2, 3, 1)
    size = (LARGEST_TILE, LARGEST_TILE)
    small = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)) for image in flat]
    return np.stack(small).transpose(0, 3, 1, 2).reshape(*images.shape[:-2], LARGEST_TILE, LARGEST_TILE)


def sheet(frames: Pixels) -> Pixels:
    """Lay images (T, N, 3, R, R) out as one picture (T*R, N*R, 3): time downwards, images to the right."""
    steps, count, _, height, width = frames.shape
    return frames.transpose(0, 3, 1, 4, 2).reshape(steps * height, count * width, 3)


def thinned(length: int, side: int) -> NDArray[np.int64]:
    """Return the indices of at most `LARGEST_SIDE // side` of `length` frames, evenly spaced, first and last among them."""
    kept = min(length, LARGEST_SIDE // side)
    return np.unique(np.linspace(0, length - 1, kept).round().astype(np.int64))


def data_uri(picture: Pixels, kind: Literal["webp", "png"]) -> str:
    """Encode a picture (H, W, 3) as a data URI; `webp` is lossy at quality 90, `png` exact."""
    buffer = io.BytesIO()
    if kind == "webp":
        Image.fromarray(picture).save(buffer, "WEBP", quality=90, method=4)
    else:
        Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return _uri(buffer.getvalue(), kind)


def file_uri(path: Path) -> str:
    """Encode a PNG file as a data URI."""
    return _uri(path.read_bytes(), "png")


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
