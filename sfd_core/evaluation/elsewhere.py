"""Images that another program drew, measured as the experiment's own: an `.npz` for ADM's evaluator, or a folder of PNG files.

Nothing is known of how they were drawn, so the protocol of their numbers names the images by their content.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sfd_core.evaluation.adm import ImageArchive
from sfd_core.evaluation.evaluator import Drawn, Evaluator, Number
from sfd_core.host.errors import DataError
from sfd_core.host.files import files_below
from sfd_core.host.progress import with_progress

UNKNOWN = "unknown"
REMEDY = "give an .npz with arr_0 uint8 (images, side, side, 3), as ADM's sampler writes it, or a folder of PNG files"


@dataclass(frozen=True)
class ImagesElsewhere:
    """Images of a file or a folder, which are read as they are needed.

    The Inception Score depends on their order: write them as they were drawn, not sorted by class.
    """

    path: Path
    source: ImageArchive | list[Path]
    count: int

    @classmethod
    def open(cls, path: Path, resolution: int) -> Self:
        """Look at the headers of all images. Raises `DataError` if they are not RGB with 8 bits and sides of `resolution`."""
        if not path.is_dir():
            archive = ImageArchive(path, str(path), REMEDY)
            count, side = archive.images()
            if side != resolution:
                raise _of_other_size(path, side, side, resolution)
            return cls(path, archive, count)
        files = files_below(path)
        if not files:
            raise DataError(f"{path} is empty; {REMEDY}")
        for file in files:
            _require_png(file, resolution)
        return cls(path, files, len(files))

    def blocks(self, rows: int) -> Iterator[NDArray[np.uint8]]:
        """Yield all images, files in the order of their names, as uint8 (n, 3, R, R). Raises `DataError` for a damaged one."""
        if isinstance(self.source, ImageArchive):
            yield from self.source.blocks(rows)
            return
        for start in range(0, self.count, rows):
            yield np.stack([_pixels(file) for file in self.source[start : start + rows]]).transpose(0, 3, 1, 2).copy()

    def measure(self, evaluator: Evaluator) -> dict[str, Number]:
        """Return every number with its protocol, and show progress."""
        digest = hashlib.sha256()

        def batches() -> Iterator[Tensor]:
            blocks = self.blocks(evaluator.batch_size)
            for block in with_progress(blocks, self.count, f"images of {self.path}", step=evaluator.batch_size):
                digest.update(block.data)
                yield torch.from_numpy(block)

        features = evaluator.features_of(batches())
        drawn = Drawn(
            images=f"{self.path.name}, sha256 of its pixels {digest.hexdigest()}",
            labels=UNKNOWN,
            seed=None,
            sampler=UNKNOWN,
            evaluations=None,
            guidance=UNKNOWN,
            recipe=None,
        )
        return evaluator.numbers(features, drawn)


def _require_png(file: Path, resolution: int) -> None:
    try:
        with Image.open(file, formats=["PNG"]) as image:
            # as stored: Pillow's mode of 16 bits a colour is RGB too, and it would drop the lower 8
            mode, (width, height) = ", ".join(str(tile.args) for tile in image.tile), image.size
    except OSError as error:
        raise DataError(f"{file} is no PNG file, and a lossy one would change the numbers ({error}); {REMEDY}") from error
    if mode != "RGB":
        raise DataError(
            f"{file} is stored in Pillow's mode {mode or 'unknown'} instead of RGB; write the images as PNG files with 8 bits "
            "a colour"
        )
    if (width, height) != (resolution, resolution):
        raise _of_other_size(file, width, height, resolution)


def _of_other_size(path: Path, width: int, height: int, resolution: int) -> DataError:
    return DataError(
        f"{path} has {width}x{height} pixels, but prepare.resolution is {resolution}: images are measured at the size of the "
        "real ones; draw them at that size, or activate the preset of theirs"
    )


def _pixels(file: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file} is damaged ({error}); write it again") from error
