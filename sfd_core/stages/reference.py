"""Stage `reference`: how far apart real images are, measured by every extractor.

    python -m sfd_core.stages.reference

writes `outputs/reference/<extractor>/` (see `evaluation.reference`) and `metrics.json`, each number with its protocol: `floor`,
the distance of held-out images; `ceiling`, of the texture VAE's reconstructions of training images; `train_subset`, of
training images themselves; all for `evaluate.final_samples` images, under `snapshot` for `evaluate.snapshot_samples`.
Mirror images count; where there are fewer held-out images, the protocol's `samples` says how many there were.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfd_core.data.store.shards import ShardReader
from sfd_core.evaluation.adm import AdmReference
from sfd_core.evaluation.evaluator import Drawn, Evaluator, head, load_extractor
from sfd_core.evaluation.extractors import FEATURES
from sfd_core.evaluation.metrics import NEIGHBOURHOOD
from sfd_core.evaluation.reference import MOST_FEATURES, write_reference
from sfd_core.experiment.params import EvaluateParams, Params, ReferenceParams
from sfd_core.host.errors import DataError, exits_cleanly
from sfd_core.host.paths import atomic_dir, require_disk, stage_dir, write_json
from sfd_core.host.progress import with_progress
from sfd_core.host.seeding import derive_seed, sample_noise
from sfd_core.models.vaes.image_vae import ImageVAE
from sfd_core.models.vaes.loader import load_texture_vae
from sfd_core.stages.start import begin_stage

SEED = 0
"""Of the choice of real images; results are compared across experiments, so it is no parameter."""
WIDEST = 2048
"""Values of a feature, for the estimate of disk space."""
BATCH = 64
"""Real images that are read, or encoded and decoded, at a time."""


@dataclass(frozen=True)
class RealSet:
    """Images that no denoiser drew, in random order: every prefix is a random subset."""

    name: str
    count: int
    batches: Iterator[Tensor]
    """uint8 (N, 3, R, R), read as they are asked for."""
    description: str
    """For the protocol."""


def reference(params: Params, prepare: Path, texture_vae: Path, out: Path) -> None:
    """Write statistics, features and the numbers of real images to `out` in one atomic step.

    Raises `ResourceError` for missing weights or a full disk, `DataError` for missing, damaged or too few inputs, `ConfigError`
    for an ADM reference of another resolution.
    """
    file = params.reference.adm_npz
    adm = AdmReference.open(Path(file), params.prepare.resolution) if file else None
    train, held_out = ShardReader(prepare / "train"), ShardReader(prepare / "held_out")
    _require_enough({"training": train, "held-out": held_out})
    vae, _ = load_texture_vae(texture_vae)
    kept = 2 * min(len(train), MOST_FEATURES) + (adm.images if adm else 0)
    require_disk(out, len(params.reference.extractors) * (kept * WIDEST * 4 + WIDEST**2 * 16), "stage reference")
    with atomic_dir(out) as folder:
        _write_references(params.reference, train, folder, adm)
        evaluator = Evaluator.load(folder, params.reference, params.evaluate.kid_subset_size, train.digest)
        sets = _real_sets(train, held_out, vae, max(params.evaluate.final_samples, params.evaluate.snapshot_samples))
        write_json(folder / "metrics.json", _metrics(evaluator, sets, params.evaluate))


def _require_enough(parts: Mapping[str, ShardReader]) -> None:
    fewest = (NEIGHBOURHOOD + 1) // 2 + 1
    for name, shard in parts.items():
        if len(shard) < fewest:
            raise DataError(
                f"{shard.path} has {len(shard)} {name} images, but precision and recall need {fewest} and their mirror images; "
                "add images, or change prepare.held_out"
            )


def _write_references(params: ReferenceParams, train: ShardReader, folder: Path, adm: AdmReference | None) -> None:
    for name in params.extractors:
        extractor = load_extractor(name, params.inception_weights)
        progress = partial(with_progress, what=f"reference {name}", step=params.batch_size)
        write_reference(folder / name, extractor, train, params.batch_size, progress, adm if name == "inception" else None)


def random_rows(count: int, available: int, *seed: int | str) -> NDArray[np.int64]:
    """Return `min(count, available)` different rows of `available` in random order; a smaller count gives a prefix."""
    order = np.random.default_rng(derive_seed(*seed)).permutation(available)
    return order[:count].astype(np.int64)


def _real_sets(train: ShardReader, held_out: ShardReader, vae: ImageVAE, count: int) -> list[RealSet]:
    """Return `count` images of each kind, or as many as there are."""

    def chosen(shard: ShardReader, purpose: str) -> tuple[int, Iterator[Tensor]]:
        rows = random_rows(count, 2 * len(shard), SEED, purpose)
        return len(rows), _oriented(shard, rows)

    originals, images = chosen(train, "reconstructions")
    decoded = _reconstructed(vae, images)
    return [
        RealSet("floor", *chosen(held_out, "held out"), "held-out images and their mirror images"),
        RealSet("ceiling", originals, decoded, "the texture VAE's reconstructions of training images"),
        RealSet("train_subset", *chosen(train, "train subset"), "training images and their mirror images"),
    ]


def _oriented(shard: ShardReader, choices: NDArray[np.int64]) -> Iterator[Tensor]:
    """Yield images by number, batch by batch: 2 i is image i, 2 i + 1 its mirror image."""
    for start in range(0, len(choices), BATCH):
        part = choices[start : start + BATCH]
        images = torch.from_numpy(shard["image"].take(part // 2))
        yield torch.where(torch.from_numpy(part % 2 == 1)[:, None, None, None], images.flip(-1), images)


@torch.inference_mode()
def _reconstructed(vae: ImageVAE, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Decode a sample of each image's posterior: what a denoiser that is perfect draws."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae.to(device)
    first = 0
    for images in batches:
        posterior = vae.encode(images.to(device).float() / 127.5 - 1)
        rows = list(range(first, first + len(images)))
        noise = sample_noise(SEED, rows, tuple(posterior.mean.shape[1:]), "ceiling").to(device)
        decoded = vae.decode(posterior.sample(noise))
        yield ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        first += len(images)


def _metrics(evaluator: Evaluator, sets: list[RealSet], params: EvaluateParams) -> dict[str, Any]:
    metrics: dict[str, Any] = {"snapshot": {}, "nearest_distance": {}}
    for images in sets:
        batches = with_progress(images.batches, images.count, f"reference numbers, {images.name}", step=BATCH)
        features = evaluator.features_of(batches)
        drawn = Drawn(
            images=images.description,
            labels="as in the data",
            seed=SEED,
            sampler="none",
            evaluations=None,
            guidance="none",
            recipe=None,
        )
        metrics[images.name] = evaluator.numbers(head(features, params.final_samples), drawn)
        metrics["snapshot"][images.name] = evaluator.numbers(head(features, params.snapshot_samples), drawn)
        if images.name == "floor":
            # Samples much nearer to training images than these would be memorised.
            distances = evaluator.nearest(head(features, params.final_samples), 1).distances
            metrics["nearest_distance"] = {
                "extractor": evaluator.main,
                "layer": FEATURES,
                "held_out_median": float(np.median(distances)),
            }
    return metrics


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Reference statistics, floor and ceiling (outputs/reference).").parse_args()
    reference(begin_stage("reference"), stage_dir("prepare"), stage_dir("texture_vae"), stage_dir("reference"))


if __name__ == "__main__":
    main()
