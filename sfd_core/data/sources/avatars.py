"""Avatars as a data set: unlimited drawings in many styles, labelled by style, all from installed packages.

A style is a JSON file of package `dicebear-styles`, drawn from a seed by `dicebear-core` and rasterised by `resvg-py`. The same
seed gives the same drawing. Only styles under CC0 1.0 or CC BY 4.0 are used.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from importlib import metadata, resources
from multiprocessing import get_context
from typing import Any

import numpy as np
import resvg_py
from dicebear import Avatar, Style
from PIL import Image

from sfd_core.data.sources.crops import Pixels, on_white
from sfd_core.data.sources.image_set import ImageSet
from sfd_core.host.errors import ConfigError
from sfd_core.host.machine import cores
from sfd_core.host.progress import with_progress

FREE = ("CC0 1.0", "CC BY 4.0")
"""Licences whose drawings may be used and shown; the second asks for the credit in NOTICE."""
SUPERSAMPLING = 2
"""Rendered pixels per output pixel along one side; averaging gives smoother edges than the rasteriser's 16 levels."""
DRAWN_AT_ONCE = 64
SEEDS = "s{}"


def avatar_images(styles: Sequence[str], per_style: int, resolution: int) -> ImageSet:
    """Draw avatars `s0`, `s1`, ... of every style in all processes of the machine, and keep one of each set of equal pictures.

    All pixels are kept in memory, 3 resolution^2 bytes an image. Raises `ConfigError` for a style that does not exist or whose
    licence does not allow its use.
    """
    _require_free(styles)
    wanted = [(style, number) for style in styles for number in range(per_style)]
    names: list[str] = []
    labels: list[int] = []
    pixels: list[Pixels] = []
    seen: set[bytes] = set()
    drawn = with_progress(_drawn(wanted, resolution), len(wanted), "draw avatars")
    for (style, number), image in zip(wanted, drawn, strict=True):
        digest = hashlib.sha256(image.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            names.append(f"{style}/{SEEDS.format(number)}")
            labels.append(styles.index(style))
            pixels.append(image)
    return ImageSet(names, labels, list(styles), lambda index, _: pixels[index], versions)


def draw(wanted: tuple[str, int], side: int) -> Pixels:
    """Return avatar (style, number) on white as (side, side, 3) uint8."""
    name, number = wanted
    drawing = Avatar(_style(name), {"seed": SEEDS.format(number), "size": side * SUPERSAMPLING}).to_string()
    encoded = resvg_py.svg_to_bytes(
        svg_string=drawing, width=side * SUPERSAMPLING, height=side * SUPERSAMPLING, skip_system_fonts=True
    )
    with Image.open(io.BytesIO(encoded)) as image:
        return np.array(on_white(image).reduce(SUPERSAMPLING))


def list_styles() -> dict[str, str]:
    """Return the name and licence of every style whose drawings may be used."""
    files = sorted(file.name for file in resources.files("dicebear_styles").iterdir() if file.name.endswith(".json"))
    licences = {name: _licence(name) for name in (file.removesuffix(".json") for file in files)}
    return {name: licence for name, licence in licences.items() if licence in FREE}


def versions() -> str:
    """Return the versions of the packages that determine drawings and pixels."""
    return " ".join(f"{name} {metadata.version(name)}" for name in ("dicebear-core", "dicebear-styles", "resvg-py"))


def _drawn(wanted: Sequence[tuple[str, int]], side: int) -> Iterator[Pixels]:
    # processes, because drawing is Python's own work; started afresh, because torch's threads do not survive a fork
    with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(draw, side=side), wanted, chunksize=DRAWN_AT_ONCE)


def _require_free(styles: Sequence[str]) -> None:
    usable = list_styles()
    for style in styles:
        if style not in usable:
            raise ConfigError(
                f"prepare.styles names {style!r}, but dicebear-styles has no style of that name under {' or '.join(FREE)}; "
                f"choose from {', '.join(usable)}"
            )


def _licence(style: str) -> str:
    return str(_definition(style).get("meta", {}).get("license", {}).get("name"))


@lru_cache
def _style(name: str) -> Style:
    return Style(_definition(name))


def _definition(name: str) -> dict[str, Any]:
    definition: dict[str, Any] = json.loads((resources.files("dicebear_styles") / f"{name}.json").read_text("utf-8"))
    return definition
