"""Stage `reference`: how far apart real images are, in the eyes of every judge.

    python -m sfd_core.stages.reference

writes `outputs/reference/<extractor>/` (see `evaluation.reference`) and `metrics.json`, each number with its protocol: `floor`,
the distance of held-out images; `ceiling`, of the texture VAE's reconstructions of training images; `train_subset`, of
training images themselves; all for `evaluate.final_samples` images, under `snapshot` for `evaluate.snapshot_samples`.
Mirror images count; where there are fewer held-out images, the protocol's `samples` says how many there were.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfd_core.config import EvaluateParams, Params, ReferenceParams, load_params
from sfd_core.data.shards import ShardReader
from sfd_core.errors import exits_cleanly
from sfd_core.evaluation.extractors import FEATURES
from sfd_core.evaluation.judge import Judge, head, load_extractor
from sfd_core.evaluation.labels import random_rows
from sfd_core.evaluation.protocol import Drawn, Number
from sfd_core.evaluation.reference import write_reference
from sfd_core.models.image_vae import ImageVAE
from sfd_core.models.vae_loader import load_texture_vae
from sfd_core.paths import atomic_dir, require_disk, stage_dir, write_json
from sfd_core.seeding import sample_noise
from sfd_core.stages.progress import with_progress

SEED = 0
"""Of the choice of real images; results are compared across experiments, so it is no parameter."""
WIDEST = 2048
"""Values of a feature, for the estimate of disk space."""


@dataclass(frozen=True)
class RealSet:
    """Judged images that no denoiser drew, in random order: every prefix is a random subset."""

    name: str
    images: Tensor
    """uint8 (N, 3, R, R)"""
    drawn: Drawn


def reference(params: Params, prepare: Path, texture_vae: Path, out: Path) -> None:
    """Write statistics, features and the numbers of real images to `out` in one atomic step.

    Raises `ResourceError` for missing weights or a full disk, `DataError` for missing or damaged inputs.
    """
    train, held_out = ShardReader(prepare / "train"), ShardReader(prepare / "held_out")
    vae, _ = load_texture_vae(texture_vae)
    require_disk(out, len(params.reference.extractors) * (len(train) * 2 * WIDEST * 4 + WIDEST**2 * 16), "stage reference")
    with atomic_dir(out) as folder:
        _write_references(params.reference, train, folder)
        judge = Judge.load(folder, params.reference, params.evaluate.kid_subset_size, train.digest)
        sets = _real_sets(train, held_out, vae, max(_counts(params.evaluate)))
        write_json(folder / "metrics.json", _metrics(judge, sets, params.evaluate))


def _write_references(params: ReferenceParams, train: ShardReader, folder: Path) -> None:
    for name in params.extractors:
        extractor = load_extractor(name, params.inception_weights)

        def progress(blocks: Any, name: str = name) -> Iterator[NDArray[Any]]:
            return with_progress(blocks, len(train), f"reference {name}", step=params.batch_size)

        write_reference(folder / name, extractor, train, params.batch_size, progress)


def _real_sets(train: ShardReader, held_out: ShardReader, vae: ImageVAE, count: int) -> list[RealSet]:
    """Return `count` images of each kind, or as many as there are."""
    held_out_images = _oriented(held_out, random_rows(count, 2 * len(held_out), SEED, "held out"))
    train_images = _oriented(train, random_rows(count, 2 * len(train), SEED, "train subset"))
    originals = _oriented(train, random_rows(count, 2 * len(train), SEED, "reconstructions"))
    labels = "as in the data"
    return [
        RealSet("floor", held_out_images, Drawn("held-out images and their mirror images", labels, SEED)),
        RealSet(
            "ceiling",
            _reconstructed(vae, originals),
            Drawn("the texture VAE's reconstructions of training images", labels, SEED),
        ),
        RealSet("train_subset", train_images, Drawn("training images and their mirror images", labels, SEED)),
    ]


def _oriented(shard: ShardReader, choices: NDArray[np.int64]) -> Tensor:
    """Return images by number: 2 i is image i, 2 i + 1 its mirror image."""
    images = torch.from_numpy(shard["image"].take(choices // 2))
    return torch.where(torch.from_numpy(choices % 2 == 1)[:, None, None, None], images.flip(-1), images)


@torch.inference_mode()
def _reconstructed(vae: ImageVAE, images: Tensor, batch_size: int = 64) -> Tensor:
    """Decode a sample of each image's posterior: what a denoiser that is perfect draws."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae.to(device)
    parts = []
    for start in range(0, len(images), batch_size):
        posterior = vae.encode(images[start : start + batch_size].to(device).float() / 127.5 - 1)
        rows = list(range(start, start + len(posterior.mean)))
        noise = sample_noise(SEED, rows, tuple(posterior.mean.shape[1:]), "ceiling").to(device)
        decoded = vae.decode(posterior.sample(noise))
        parts.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu())
    return torch.cat(parts)


def _counts(params: EvaluateParams) -> tuple[int, int]:
    return params.final_samples, params.snapshot_samples


def _metrics(judge: Judge, sets: list[RealSet], params: EvaluateParams) -> dict[str, Any]:
    final, snapshot = _counts(params)
    metrics: dict[str, Any] = {"snapshot": {}, "nearest_distance": {}}
    for images in with_progress(sets, len(sets), "reference numbers", unit="sets"):
        features = judge.features(images.images)
        metrics[images.name] = _plain(judge.numbers(head(features, final), images.drawn))
        metrics["snapshot"][images.name] = _plain(judge.numbers(head(features, snapshot), images.drawn))
        if images.name == "floor":
            # Samples much nearer to training images than these would be memorised.
            distances = judge.nearest(head(features, final), 1).distances
            metrics["nearest_distance"] = {
                "extractor": judge.main,
                "layer": FEATURES,
                "held_out_median": float(np.median(distances)),
            }
    return metrics


def _plain(numbers: dict[str, Number]) -> dict[str, Any]:
    return {name: number.as_dict() for name, number in numbers.items()}


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Reference statistics, floor and ceiling (outputs/reference).").parse_args()
    reference(load_params(), stage_dir("prepare"), stage_dir("texture_vae"), stage_dir("reference"))


if __name__ == "__main__":
    main()
