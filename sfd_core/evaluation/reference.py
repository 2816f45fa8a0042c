"""Features and statistics of the real images, computed once per extractor and kept on disk.

Layout: `<folder>/<extractor>/statistics.safetensors` (mean, factor of the covariance; the same of the spatial layer) over all
training images and their mirror images, with the radii that precision needs, and `<folder>/<extractor>/features/`, a shard of
`features` float32 (2, D) (image, mirror image) and `row`, of all training images, or of evenly spaced ones if there are very
many. With an ADM reference file the statistics are the file's, and `<folder>/<extractor>/compared/` holds `features` (D,) of
the file's images.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec, ShardReader, evenly_spaced
from sfd_core.evaluation.adm import AdmIdentity, AdmReference
from sfd_core.evaluation.extractors import FEATURES, SPATIAL, Extractor, ExtractorIdentity
from sfd_core.evaluation.metrics import FeatureMoments, FrechetReference, Reference, neighbour_radii
from sfd_core.host.errors import DataError, IdentityError
from sfd_core.host.paths import atomic_dir
from sfd_core.host.seeding import derive_seed

MOST_FEATURES = 50_000
"""Training images whose features are kept for KID, precision, recall and neighbours; statistics always cover all."""

Progress = Callable[[Iterable[NDArray[Any]], int], Iterable[NDArray[Any]]]
"""Given batches of images and how many images they are in all, yields the batches."""


@dataclass(frozen=True)
class ReferenceSet:
    """The real images as one extractor sees them."""

    identity: ExtractorIdentity
    digest: str
    """Of the train shard."""
    images: int
    """Training images and mirror images in the statistics; with an ADM reference the images of its file."""
    adm: AdmIdentity | None
    features: Tensor
    """(M, 2, D): image, mirror image."""
    rows: NDArray[np.int64]
    """(M,) rows of the train shard."""
    frechet: FrechetReference
    spatial: FrechetReference | None
    compared: Tensor | None
    """(M, D) of the images of an ADM reference."""
    radii: Tensor
    """(M,) of the images that precision and recall see."""

    @property
    def description(self) -> str:
        """What the images are compared with, in words, for protocols."""
        if self.adm is None:
            return "training images and their mirror images"
        return f"ADM's {self.adm.file}: its mu, sigma, mu_s and sigma_s, and its {self.adm.images} images"

    @property
    def compared_images(self) -> int:
        """Images M that precision, recall and KID see."""
        return len(self.features if self.compared is None else self.compared)

    @property
    def source_digest(self) -> str:
        """Hash of what the images are compared with: the train shard, or the ADM reference file."""
        return self.digest if self.adm is None else self.adm.sha256

    @cached_property
    def reference(self) -> Reference:
        """What drawn images are compared with: every kept image once, with an ADM reference its images."""
        features = _one_orientation(self.features) if self.compared is None else self.compared
        return Reference(features, self.radii, self.frechet, self.spatial)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `write_reference` wrote. Raises `DataError` if a file is missing or damaged."""
        shard = ShardReader(folder / "features")
        path = folder / "statistics.safetensors"
        try:
            statistics = load_file(path)
            frechet = FrechetReference(statistics["mean"], statistics["factor"])
            radii = statistics["radii"]
            spatial = (
                FrechetReference(statistics["spatial_mean"], statistics["spatial_factor"])
                if "spatial_mean" in statistics
                else None
            )
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(f"{path} holds no reference statistics ({error}); run `dvc repro reference`") from error
        return cls(
            identity=ExtractorIdentity(**shard.meta["extractor"]),
            digest=shard.meta["prepare"],
            images=shard.meta["images"],
            adm=AdmIdentity(**shard.meta["adm"]) if shard.meta["adm"] else None,
            features=_features(shard),
            rows=np.array(shard["row"].array),
            frechet=frechet,
            spatial=spatial,
            compared=_features(ShardReader(folder / "compared")) if shard.meta["adm"] else None,
            radii=radii,
        )

    def require(self, identity: ExtractorIdentity, adm_npz: str | None) -> None:
        """Raise `IdentityError` if another extractor than `identity` made this, or of another reference than `adm_npz`."""
        if identity != self.identity:
            raise IdentityError(
                f"the reference was made with extractor {self.identity.key}, but the extractor now is {identity.key}: "
                "weights or preprocessing changed; run `dvc repro reference`"
            )
        file = self.adm.file if self.adm else None
        if file != (Path(adm_npz).name if adm_npz else None):
            raise IdentityError(
                f"the reference of {identity.name} was made with ADM file {file}, but reference.adm_npz is {adm_npz}; "
                "run `dvc repro reference`"
            )


def write_reference(
    folder: Path, extractor: Extractor, train: ShardReader, batch_size: int, progress: Progress, adm: AdmReference | None = None
) -> None:
    """Extract features of all images of `train` and their mirror images and write `folder` atomically.

    With `adm` statistics come from its file; only the training images whose features are kept, for nearest neighbours, and the
    file's own are then looked at. Raises `IdentityError` if the extractor is not the network that made the file's statistics,
    `DataError` if the file is damaged.
    """
    if adm is not None and extractor.identity.name != "inception":
        raise IdentityError(
            f"{adm.file.path} holds statistics of Inception with its standard weights, but the extractor is "
            f"{extractor.identity.name}; set reference.inception_weights to null, or reference.adm_npz to null"
        )
    identity = adm.identity() if adm else None
    meta = {
        "extractor": asdict(extractor.identity),
        "prepare": train.digest,
        "images": identity.images if identity else 2 * len(train),
        "adm": asdict(identity) if identity else None,
    }
    kept = evenly_spaced(len(train), MOST_FEATURES)
    rows = kept if adm else np.arange(len(train))
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    moments = {} if adm else {name: FeatureMoments() for name in (FEATURES, SPATIAL) if name in extractor.layers}
    fitted = dict(zip((FEATURES, SPATIAL), adm.statistics(), strict=True)) if adm else {}
    width = extractor.extract(torch.from_numpy(train["image"][:1]), 1)[FEATURES].shape[1]
    with atomic_dir(folder) as temporary:
        fields = {FEATURES: FieldSpec("float32", (2, width)), "row": FieldSpec("int64", ())}
        with ShardWriter(temporary / "features", fields, meta) as writer:
            images = (train["image"].take(part) for part in batches)
            for part, block in zip(batches, progress(images, len(rows)), strict=True):
                pair = _both_orientations(extractor, torch.from_numpy(block))
                for name, moment in moments.items():
                    moment.update(pair[name].flatten(0, 1))
                wanted = np.isin(part, kept, assume_unique=True)
                writer.append(features=pair[FEATURES][torch.from_numpy(wanted)].numpy(), row=part[wanted])
        fitted |= {name: FrechetReference.of(moment) for name, moment in moments.items()}
        if adm is not None:
            with ShardWriter(temporary / "compared", {FEATURES: FieldSpec("float32", (width,))}, meta) as writer:
                for block in progress(adm.file.blocks(batch_size), adm.images):
                    writer.append(features=extractor.extract(torch.from_numpy(block), batch_size)[FEATURES].numpy())
        kept_features = _features(ShardReader(temporary / ("features" if adm is None else "compared")))
        radii = neighbour_radii(_one_orientation(kept_features) if adm is None else kept_features)
        tensors = {"radii": radii, "mean": fitted[FEATURES].mean, "factor": fitted[FEATURES].factor.contiguous()}
        if SPATIAL in fitted:
            tensors |= {"spatial_mean": fitted[SPATIAL].mean, "spatial_factor": fitted[SPATIAL].factor.contiguous()}
        save_file(tensors, temporary / "statistics.safetensors")


def _features(shard: ShardReader) -> Tensor:
    return torch.from_numpy(np.array(shard[FEATURES].array))


def _one_orientation(pairs: Tensor) -> Tensor:
    """Return of features (M, 2, D) those of the image or of its mirror image, by a fixed coin.

    Mirror images of symmetric drawings would be duplicates, which nearest-neighbour radii take for density.
    """
    coins = np.random.default_rng(derive_seed("reference orientation")).integers(0, 2, len(pairs))
    return pairs[torch.arange(len(coins)), torch.from_numpy(coins)]


def _both_orientations(extractor: Extractor, images: Tensor) -> dict[str, Tensor]:
    """Return layers (N, 2, D) of images and their mirror images."""
    plain, mirrored = (extractor.extract(pictures, len(images)) for pictures in (images, images.flip(-1)))
    return {name: torch.stack([plain[name], mirrored[name]], dim=1) for name in plain}
