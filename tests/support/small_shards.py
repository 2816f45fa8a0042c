"""A small shard of latents and labels, and what lies in its folder."""

from pathlib import Path

import numpy as np

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec

FIELDS = {"z": FieldSpec("float32", (3, 2)), "label": FieldSpec("int64", ())}


def write(path: Path, rows: int = 10, rows_per_file: int = 65536, batch: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    arrays = {"z": chance.normal(size=(rows, 3, 2)).astype(np.float32), "label": np.arange(rows)}
    with ShardWriter(path, FIELDS, {"classes": ["a"]}, rows_per_file) as writer:
        for start in range(0, rows, batch):
            writer.append(**{name: array[start : start + batch] for name, array in arrays.items()})
    return arrays


def leftovers(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())
