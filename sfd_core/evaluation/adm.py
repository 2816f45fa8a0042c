"""ADM's reference files (guided-diffusion): Inception's statistics of a data set and some of its images in one `.npz`.

`mu` (2048,), `sigma` (2048, 2048) and `mu_s` (2023,), `sigma_s` (2023, 2023) are means and covariances of the pooled and the
spatial feature; `arr_0` uint8 (M, R, R, 3) are images, which precision and recall compare with.
`VIRTUAL_imagenet256_labeled.npz` holds statistics of ImageNet and 10,000 images.
"""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfd_core.evaluation.metrics import FrechetReference
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.paths import file_digest

POOLED, SPATIAL = 2048, 2023
SHAPES: dict[str, tuple[int, ...]] = {
    "mu": (POOLED,),
    "sigma": (POOLED, POOLED),
    "mu_s": (SPATIAL,),
    "sigma_s": (SPATIAL, SPATIAL),
}
IMAGES = "arr_0"
DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)
"""What reading a damaged archive raises."""
REMEDY = "fetch the file again, or set reference.adm_npz to null to compare with the training images"


@dataclass(frozen=True)
class AdmIdentity:
    """Which file it is."""

    file: str
    """Name without folder."""
    sha256: str
    images: int
    """M, the images that precision, recall and KID see."""


@dataclass(frozen=True)
class AdmReference:
    """An opened file whose arrays are all there and have the right types and shapes."""

    path: Path
    images: int

    @classmethod
    def open(cls, path: Path, resolution: int) -> "AdmReference":
        """Check the headers of all arrays, which takes no time.

        Raises `DataError` for a file that is missing, damaged or lacks an array, `ConfigError` for images of another side than
        `resolution`.
        """
        headers = {name: _header(path, name) for name in (*SHAPES, IMAGES)}
        for name, shape in SHAPES.items():
            found, dtype = headers[name]
            if found != shape or dtype.kind != "f":
                raise DataError(f"{path}: {name} is {dtype} {found} instead of floating point {shape}; {REMEDY}")
        shape, dtype = headers[IMAGES]
        if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or not shape[0] or dtype != np.uint8:
            raise DataError(f"{path}: {IMAGES} is {dtype} {shape} instead of uint8 (images, side, side, 3); {REMEDY}")
        if shape[1] != resolution:
            raise ConfigError(
                f"reference.adm_npz {path} holds images of {shape[1]}x{shape[1]} pixels, but prepare.resolution is "
                f"{resolution}; name the reference of that resolution"
            )
        return cls(path, shape[0])

    def identity(self) -> AdmIdentity:
        """Return name and hash of the file; it is read once in whole."""
        return AdmIdentity(self.path.name, file_digest(self.path), self.images)

    def statistics(self) -> tuple[FrechetReference, FrechetReference]:
        """Return the distributions of the pooled and of the spatial feature.

        Raises `DataError` if values are not finite, or a covariance is not symmetric.
        """
        arrays = {name: self._array(name) for name in SHAPES}
        pairs = (("mu", "sigma"), ("mu_s", "sigma_s"))
        pooled, spatial = (
            FrechetReference.of_statistics(torch.from_numpy(arrays[mean]), torch.from_numpy(arrays[covariance]))
            for mean, covariance in pairs
        )
        return pooled, spatial

    def blocks(self, rows: int) -> Iterator[NDArray[np.uint8]]:
        """Yield all images in order as uint8 (N, 3, R, R), at most `rows` at a time; the archive is unpacked as it is read."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{IMAGES}.npy") as stream:
                (count, height, width, channels), _ = _read_header(stream)
                for start in range(0, count, rows):
                    shape = (min(rows, count - start), height, width, channels)
                    content = stream.read(int(np.prod(shape)))
                    yield np.frombuffer(content, np.uint8).reshape(shape).transpose(0, 3, 1, 2).copy()
        except DAMAGE as error:
            raise DataError(f"{self.path}: {IMAGES} is damaged ({error}); {REMEDY}") from error

    def _array(self, name: str) -> NDArray[np.float64]:
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                array = np.asarray(archive[name], dtype=np.float64)
        except DAMAGE as error:
            raise DataError(f"{self.path}: {name} is damaged ({error}); {REMEDY}") from error
        if not np.isfinite(array).all():
            raise DataError(f"{self.path}: {name} holds NaN or infinity; {REMEDY}")
        if array.ndim == 2 and not np.allclose(array, array.T, rtol=1e-4, atol=1e-6):
            raise DataError(f"{self.path}: {name} is not symmetric, so it is no covariance; {REMEDY}")
        return array


def _header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{name}.npy" not in archive.namelist():
                held = ", ".join(member.removesuffix(".npy") for member in archive.namelist())
                raise DataError(f"reference.adm_npz {path} lacks {name}; it holds {held or 'nothing'}; {REMEDY}")
            with archive.open(f"{name}.npy") as stream:
                return _read_header(stream)
    except FileNotFoundError as error:
        raise DataError(f"reference.adm_npz {path} does not exist; {REMEDY}") from error
    except DAMAGE as error:
        raise DataError(f"reference.adm_npz {path} is no readable .npz file ({error}); {REMEDY}") from error


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the header of an `.npy` file and leave the stream at its first value."""
    major, _ = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    if fortran_order and len(shape) == 4:
        raise ValueError("its images are in Fortran order")
    return shape, dtype
