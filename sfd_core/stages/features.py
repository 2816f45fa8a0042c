"""Stage `features`: images to patch tokens of the frozen semantic encoder.

    python -m sfd_core.stages.features

writes `outputs/features/{train,held_out}/` (tokens float16 (2, C, g, g): the image's and its mirror image's) and
`outputs/features/statistics.safetensors` (`token_mean`, `token_std` over train), all of it or nothing.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sfd_core.composite import StreamingMoments, save_statistics
from sfd_core.config import FeaturesParams, load_params
from sfd_core.data.shard_writer import ShardWriter
from sfd_core.data.shards import FieldSpec, ShardReader
from sfd_core.errors import NumericsError, exits_cleanly
from sfd_core.models.encoders import Encoder, load_encoder
from sfd_core.paths import atomic_dir, require_disk, stage_dir
from sfd_core.stages.progress import with_progress

PARTS = ("train", "held_out")
SPARE_BYTES = 1 << 20


def extract_features(params: FeaturesParams, images: Path, out: Path) -> None:
    """Write tokens of all images of the `prepare` folder `images`, and their statistics, to `out` in one atomic step.

    Raises `NumericsError` for tokens that float16 cannot hold, and what `load_encoder` and `ShardReader` raise.
    """
    shards = {part: ShardReader(images / part) for part in PARTS}
    encoder = load_encoder(params).to("cuda" if torch.cuda.is_available() else "cpu")
    field = FieldSpec("float16", (2, encoder.channels, params.grid, params.grid))
    rows = sum(len(shard) for shard in shards.values())
    require_disk(out, rows * field.row_bytes + SPARE_BYTES, "stage features")
    moments = StreamingMoments(encoder.channels)
    with atomic_dir(out) as folder:
        for part, shard in shards.items():
            meta = {"encoder": encoder.identity, "prepare": shard.digest}
            with ShardWriter(folder / part, {"tokens": field}, meta) as writer:
                for tokens in _batches(encoder, shard, part, params.batch_size):
                    writer.append(tokens=tokens)
                    if part == "train":
                        moments.update(torch.from_numpy(tokens).flatten(0, 1))
        save_statistics(folder / "statistics.safetensors", {"token": moments.statistics()})


def _batches(encoder: Encoder, shard: ShardReader, part: str, batch_size: int) -> Iterator[NDArray[np.float16]]:
    batches = shard["image"].blocks(batch_size)
    for batch in with_progress(batches, len(shard), f"features {part}", step=batch_size):
        yield _tokens(encoder, torch.from_numpy(batch), part)


def _tokens(encoder: Encoder, images: torch.Tensor, part: str) -> NDArray[np.float16]:
    """Return tokens (N, 2, C, g, g) of images and mirror images; statistics are taken of these rounded values."""
    pairs = torch.stack([encoder.tokens(images), encoder.tokens(images.flip(-1))], dim=1)
    tokens = pairs.half()
    if not bool(torch.isfinite(tokens).all()):
        raise NumericsError(
            f"tokens of {part} images reach {pairs.abs().max().item():.3g}, more than float16 holds, or are NaN; "
            "check the encoder's weights"
        )
    return tokens.cpu().numpy()


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Images to patch tokens (outputs/features).").parse_args()
    extract_features(load_params().features, stage_dir("prepare"), stage_dir("features"))


if __name__ == "__main__":
    main()
