"""A picture of a data set: images of every class, one row per class."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sfd_core.data.store.shards import ShardReader, evenly_spaced
from sfd_core.host.paths import atomic_path

IMAGES_PER_CLASS = 16
MOST_CLASSES = 100
MARGIN = 4
LABEL_WIDTH = 150
LARGEST_TILE = 64


def write_contact_sheet(shard: ShardReader, path: Path) -> None:
    """Write a PNG with evenly spaced images of at most 100 classes of a `prepare` shard."""
    labels = shard["label"].array
    classes: list[str] = shard.meta["classes"][:MOST_CLASSES]
    tile = min(LARGEST_TILE, int(shard.meta["resolution"]))
    row_height = tile + MARGIN
    size = (LABEL_WIDTH + IMAGES_PER_CLASS * row_height + MARGIN, len(classes) * row_height + MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for label, name in enumerate(classes):
        top = MARGIN + label * row_height
        draw.text((MARGIN, top + tile // 2), name[:24], fill="black", font=font, anchor="lm")
        for column, image in enumerate(shard["image"].take(_some(np.flatnonzero(labels == label)))):
            picture = Image.fromarray(image.transpose(1, 2, 0)).resize((tile, tile), Image.Resampling.BOX)
            sheet.paste(picture, (LABEL_WIDTH + column * row_height, top))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _some(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows[evenly_spaced(len(rows), IMAGES_PER_CLASS)] if len(rows) else rows
