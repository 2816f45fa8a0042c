"""Latents of any number of images as `encode` lays them out, in files of holes, which read as zeros and take no disk."""

from pathlib import Path

import numpy as np

from sfd_core.data.store.pieces import PiecedShard, rows_per_piece
from sfd_core.data.store.shard_writer import write_manifest
from sfd_core.data.store.shards import FieldSpec, ShardFile
from sfd_core.data.store.verified import note_verified
from sfd_core.latents.stored import latent_fields

CHANNELS = {"z_tex": 32, "z_sem": 16, "z_pca": 8}
GRID = 16
"""Of ImageNet at 256x256 (arXiv 2512.04926)."""


def lay_out(folder: Path, images: int) -> int:
    """Write the shard `folder`, noted in the working folder as verified; return the bytes that it seems to hold."""
    fields = latent_fields("sample", CHANNELS, "float32", GRID) | {"label": FieldSpec("int64", ())}
    files: dict[str, list[ShardFile]] = {name: [] for name in fields}
    for piece in PiecedShard(folder, fields, images, rows_per_piece(fields, 32)).pieces:
        piece.path.mkdir(parents=True)
        for name, spec in fields.items():
            path, count = piece.path / f"{name}-00000.npy", len(piece.rows)
            np.lib.format.open_memmap(path, "w+", np.dtype(spec.dtype), (count, *spec.shape))
            files[name].append(ShardFile(f"{piece.path.name}/{path.name}", count, f"{len(files[name]):064x}"))
    write_manifest(folder, images, {name: (spec, files[name]) for name, spec in fields.items()}, {})
    note_verified(folder, {file.file: file.sha256 for found in files.values() for file in found})
    return images * sum(spec.row_bytes for spec in fields.values())
