"""Samples in the formats of other programs: one `.npz` for ADM's evaluator, or a folder of PNG files."""

import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import atomic_dir, atomic_path

WRITERS = 8
"""Threads that compress PNG files."""

Images = NDArray[np.uint8]


def write_npz(path: Path, batches: Iterable[Images], labels: NDArray[np.int64], resolution: int) -> None:
    """Write `arr_0` uint8 (N, R, R, 3) of batches (n, 3, R, R) and `arr_1` int64 (N,) labels, as ADM's sampler does.

    One batch is in memory at a time. The write is atomic.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), resolution, resolution, 3)}
            np.lib.format.write_array_header_1_0(stream, header)
            for images in batches:
                stream.write(np.ascontiguousarray(images.transpose(0, 2, 3, 1)).data)
        with archive.open("arr_1.npy", "w") as stream:
            np.lib.format.write_array(stream, labels, allow_pickle=False)


def write_pngs(folder: Path, batches: Iterable[Images]) -> None:
    """Write image i of batches (n, 3, R, R) to `folder/<i in six digits>.png`; the write is atomic."""
    with atomic_dir(folder) as temporary, ThreadPoolExecutor(WRITERS) as pool:
        first = 0
        for images in batches:
            pixels = images.transpose(0, 2, 3, 1)
            files = [temporary / f"{first + index:06d}.png" for index in range(len(pixels))]
            list(pool.map(lambda file, image: Image.fromarray(image).save(file), files, pixels))
            first += len(pixels)


def require_new_folder(folder: Path) -> None:
    """Raise `ConfigError` if `folder` is not empty: writing images would replace it."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and would be replaced; name a new or empty folder for the images")
