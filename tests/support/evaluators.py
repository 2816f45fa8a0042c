"""A small evaluator with its reference on disk."""

from pathlib import Path

import torch
from torch import Tensor

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.evaluation.evaluator import Evaluator, load_extractor
from sfd_core.evaluation.reference import write_reference
from sfd_core.experiment.params import ReferenceParams

PARAMS = ReferenceParams(extractors=["efficientnet_lite0"], inception_weights=None, adm_npz=None, batch_size=8)
SUBSET = 6


def patterns(count: int, seed: int = 0, size: int = 16) -> Tensor:
    """Smooth coloured patterns: random images of 4x4 pixels, enlarged."""
    small = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(small, size=(size, size), mode="bilinear") * 255).to(torch.uint8)


def train_shard(folder: Path, count: int = 12, size: int = 16) -> ShardReader:
    """Write a shard of training images."""
    with ShardWriter(folder, {"image": FieldSpec("uint8", (3, size, size))}, {}) as writer:
        writer.append(image=patterns(count, size=size).numpy())
    return ShardReader(folder)


def small_evaluator(folder: Path) -> Evaluator:
    """Write the reference of twelve images to `folder` and load its evaluator."""
    train = train_shard(folder / "images")
    extractor = load_extractor("efficientnet_lite0")
    write_reference(folder / "reference" / "efficientnet_lite0", extractor, train, 8, lambda blocks, _: blocks)
    return Evaluator.load(folder / "reference", PARAMS, SUBSET)
