"""ADM's files (guided-diffusion): images in one `.npz`, and references with Inception's statistics of a data set beside them.

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


@dataclass(frozen=True)
class ImageArchive:
    """An `.npz` with images `arr_0` uint8 (N, R, R, 3); its methods raise `DataError` for a file that is missing or damaged."""

    path: Path
    name: str
    """What messages call it."""
    remedy: str

    def header(self, array: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return shape and type of an array without reading its values."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                if f"{array}.npy" not in archive.namelist():
                    held = ", ".join(member.removesuffix(".npy") for member in archive.namelist())
                    raise DataError(f"{self.name} lacks {array}; it holds {held or 'nothing'}; {self.remedy}")
                with archive.open(f"{array}.npy") as stream:
                    return _read_header(stream)
        except FileNotFoundError as error:
            raise DataError(f"{self.name} does not exist; {self.remedy}") from error
        except DAMAGE as error:
            raise DataError(f"{self.name} is no readable .npz file ({error}); {self.remedy}") from error

    def images(self) -> tuple[int, int]:
        """Return how many images there are, and their side in pixels."""
        shape, dtype = self.header(IMAGES)
        if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or not shape[0] or dtype != np.uint8:
            raise DataError(f"{self.name}: {IMAGES} is {dtype} {shape} instead of uint8 (images, side, side, 3); {self.remedy}")
        return shape[0], shape[1]

    def blocks(self, rows: int) -> Iterator[NDArray[np.uint8]]:
        """Yield all images in order as uint8 (n, 3, R, R), at most `rows` at a time; the archive is unpacked as it is read."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{IMAGES}.npy") as stream:
                (count, height, width, channels), _ = _read_header(stream)
                for start in range(0, count, rows):
                    shape = (min(rows, count - start), height, width, channels)
                    content = stream.read(int(np.prod(shape)))
                    yield np.frombuffer(content, np.uint8).reshape(shape).transpose(0, 3, 1, 2).copy()
        except DAMAGE as error:
            raise DataError(f"{self.name}: {IMAGES} is damaged ({error}); {self.remedy}") from error


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
    """An opened reference whose arrays are all there and have the right types and shapes."""

    file: ImageArchive
    images: int

    @classmethod
    def open(cls, path: Path, resolution: int) -> "AdmReference":
        """Check the headers of all arrays, which takes no time.

        Raises `DataError` for a file that is missing, damaged or lacks an array, `ConfigError` for images of another side than
        `resolution`.
        """
        remedy = "fetch the file again, or set reference.adm_npz to null to compare with the training images"
        file = ImageArchive(path, f"reference.adm_npz {path}", remedy)
        for array, shape in SHAPES.items():
            found, dtype = file.header(array)
            if found != shape or dtype.kind != "f":
                raise DataError(f"{file.name}: {array} is {dtype} {found} instead of floating point {shape}; {remedy}")
        images, side = file.images()
        if side != resolution:
            raise ConfigError(
                f"{file.name} holds images of {side}x{side} pixels, but prepare.resolution is {resolution}; name the reference "
                "of that resolution"
            )
        return cls(file, images)

    def identity(self) -> AdmIdentity:
        """Return name and hash of the file; it is read once in whole."""
        return AdmIdentity(self.file.path.name, file_digest(self.file.path), self.images)

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

    def _array(self, name: str) -> NDArray[np.float64]:
        told, remedy = self.file.name, self.file.remedy
        try:
            with np.load(self.file.path, allow_pickle=False) as archive:
                array = np.asarray(archive[name], dtype=np.float64)
        except DAMAGE as error:
            raise DataError(f"{told}: {name} is damaged ({error}); {remedy}") from error
        if not np.isfinite(array).all():
            raise DataError(f"{told}: {name} holds NaN or infinity; {remedy}")
        if array.ndim == 2 and not np.allclose(array, array.T, rtol=1e-4, atol=1e-6):
            raise DataError(f"{told}: {name} is not symmetric, so it is no covariance; {remedy}")
        return array


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the header of an `.npy` file and leave the stream at its first value."""
    major, _ = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    if fortran_order and len(shape) == 4:
        raise ValueError("its images are in Fortran order")
    return shape, dtype
