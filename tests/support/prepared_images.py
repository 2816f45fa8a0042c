"""Prepared images and the weights of a small encoder, in the working folder."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import timm
import torch

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec

ROWS = {"train": 26, "held_out": 7}
FEATURES = {
    "encoder": "test_vit", "weights": "weights.pth", "input_size": 64, "grid": 4, "precision": "float32", "batch_size": 3,
}  # fmt: skip
"""Parameters of stage `features` for that encoder, but for `store`."""


def prepare_images(folder: Path = Path(), counts: Mapping[str, int] = ROWS, side: int = 32) -> None:
    """Write `prepare/train`, `prepare/held_out` and `weights.pth`."""
    chance = np.random.default_rng(0)
    fields = {"image": FieldSpec("uint8", (3, side, side)), "label": FieldSpec("int64", ())}
    for part, rows in counts.items():
        with ShardWriter(folder / "prepare" / part, fields, {"classes": ["a", "b"], "resolution": side}) as writer:
            writer.append(image=chance.integers(0, 256, (rows, 3, side, side), dtype=np.uint8), label=np.arange(rows) % 2)
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), folder / "weights.pth")
