"""A folder of small pictures, one folder a class."""

from pathlib import Path

import numpy as np
from PIL import Image


def draw_images(folder: Path) -> Path:
    """Write 8 pictures of `ant` and 6 of `cat`, and return the folder."""
    chance = np.random.default_rng(0)
    for name, count in (("ant", 8), ("cat", 6)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = chance.integers(0, 256, (20, 18, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder
