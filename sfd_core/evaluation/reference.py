"""Features and statistics of the real images, computed once per extractor and kept on disk.

Layout: `<folder>/<extractor>/statistics.safetensors` (mean, factor of the covariance; the same of the spatial layer) over all
training images and their mirror images, and `<folder>/<extractor>/features/`, a shard of `features` float32 (2, D) (image,
mirror image) and `row`, of all training images, or of evenly spaced ones where there are very many.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfd_core.data.shard_writer import ShardWriter
from sfd_core.data.shards import FieldSpec, ShardReader
from sfd_core.errors import DataError, IdentityError
from sfd_core.evaluation.extractors import FEATURES, SPATIAL, ExtractorIdentity, JudgeNetwork
from sfd_core.evaluation.frechet import FeatureMoments, FrechetReference
from sfd_core.evaluation.metrics import Reference, concatenated
from sfd_core.paths import atomic_dir
from sfd_core.seeding import derive_seed

MOST_FEATURES = 50_000
"""Training images whose features are kept for KID, precision, recall and neighbours; statistics always cover all."""
DESCRIPTION = "training images and their mirror images"

Progress = Callable[[Iterable[NDArray[Any]]], Iterable[NDArray[Any]]]


@dataclass(frozen=True)
class ReferenceSet:
    """The real images as one extractor sees them."""

    identity: ExtractorIdentity
    digest: str
    """Of the train shard."""
    images: int
    """Training images and mirror images in the statistics."""
    features: Tensor
    """(M, 2, D): image, mirror image."""
    rows: NDArray[np.int64]
    """(M,) rows of the train shard."""
    frechet: FrechetReference
    spatial: FrechetReference | None

    @property
    def reference(self) -> Reference:
        """Every kept image once, mirrored or not by a fixed coin.

        Mirror images of symmetric drawings would be duplicates, which nearest-neighbour radii take for density.
        """
        coins = np.random.default_rng(derive_seed("reference orientation")).integers(0, 2, len(self.features))
        return Reference(self.features[torch.arange(len(coins)), torch.from_numpy(coins)], self.frechet, self.spatial)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `write_reference` wrote. Raises `DataError` if a file is missing or damaged."""
        shard = ShardReader(folder / "features")
        path = folder / "statistics.safetensors"
        try:
            statistics = load_file(path)
            frechet = FrechetReference(statistics["mean"], statistics["factor"])
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
            features=torch.from_numpy(np.array(shard["features"].array)),
            rows=np.array(shard["row"].array),
            frechet=frechet,
            spatial=spatial,
        )

    def require(self, identity: ExtractorIdentity) -> None:
        """Raise `IdentityError` if another extractor than `identity` made this."""
        if identity != self.identity:
            raise IdentityError(
                f"the reference was made with extractor {self.identity.key}, but the extractor now is {identity.key}: "
                "weights or preprocessing changed; run `dvc repro reference`"
            )


def layers_of(extractor: JudgeNetwork, images: Tensor) -> dict[str, Tensor]:
    """Return all layers, float32 on the CPU (N, D), of uint8 images (N, 3, H, W) on any device."""
    device = next(extractor.parameters()).device
    with torch.inference_mode():
        outputs = extractor.convert_features_tuple_to_dict(extractor(images.to(device)))
    # A clone leaves inference mode, so that what is kept is an ordinary tensor.
    return {name: output.float().cpu().clone() for name, output in outputs.items()}


def layers_in_batches(extractor: JudgeNetwork, images: Tensor, batch_size: int) -> dict[str, Tensor]:
    """Return all layers of any number of images, `batch_size` at a time; see `layers_of`."""
    return concatenated([layers_of(extractor, batch) for batch in torch.split(images, batch_size)])


def write_reference(folder: Path, extractor: JudgeNetwork, train: ShardReader, batch_size: int, progress: Progress) -> None:
    """Judge all images of `train` and their mirror images and write `folder` atomically."""
    moments = {name: FeatureMoments() for name in (FEATURES, SPATIAL) if name in extractor.features_list}
    kept = np.unique(np.linspace(0, len(train) - 1, min(len(train), MOST_FEATURES)).round().astype(np.int64))
    meta = {"extractor": asdict(extractor.identity), "prepare": train.digest, "images": 2 * len(train)}
    width = layers_of(extractor, torch.from_numpy(train["image"][:1]))[FEATURES].shape[1]
    fields = {FEATURES: FieldSpec("float32", (2, width)), "row": FieldSpec("int64", ())}
    with atomic_dir(folder) as temporary:
        with ShardWriter(temporary / "features", fields, meta) as writer:
            start = 0
            for images in progress(train["image"].blocks(batch_size)):
                pair = _both_orientations(extractor, torch.from_numpy(images))
                for name, moment in moments.items():
                    moment.update(pair[name].flatten(0, 1))
                rows = kept[(kept >= start) & (kept < start + len(images))]
                writer.append(features=pair[FEATURES][rows - start].numpy(), row=rows)
                start += len(images)
        factored = {name: FrechetReference.of(moment) for name, moment in moments.items()}
        tensors = {"mean": factored[FEATURES].mean, "factor": factored[FEATURES].factor.contiguous()}
        if SPATIAL in factored:
            tensors |= {"spatial_mean": factored[SPATIAL].mean, "spatial_factor": factored[SPATIAL].factor.contiguous()}
        save_file(tensors, temporary / "statistics.safetensors")


def _both_orientations(extractor: JudgeNetwork, images: Tensor) -> dict[str, Tensor]:
    """Return layers (N, 2, D) of images and their mirror images."""
    plain, mirrored = layers_of(extractor, images), layers_of(extractor, images.flip(-1))
    return {name: torch.stack([plain[name], mirrored[name]], dim=1) for name in plain}
