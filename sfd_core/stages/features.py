"""Stage `features`: images to patch tokens of the frozen semantic encoder.

    python -m sfd_core.stages.features

writes `outputs/features/{train,held_out}/` and `outputs/features/statistics.safetensors` (`token_mean`, `token_std` over
train), all of it or nothing. The folder of a part is a shard (tokens float16 (2, C, g, g): the image's and its mirror
image's), or with `features.store: false` the recipe by which `sfd_core.tokens` computes the same tokens again.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from sfd_core.composite import StreamingMoments, save_statistics
from sfd_core.config import FeaturesParams, load_params
from sfd_core.data.shard_writer import ShardWriter
from sfd_core.data.shards import FieldSpec, ShardReader
from sfd_core.errors import exits_cleanly
from sfd_core.models.encoders import Encoder, load_encoder
from sfd_core.paths import atomic_dir, require_disk, stage_dir
from sfd_core.stages.progress import with_progress
from sfd_core.tokens import TokenRecipe, rounded

PARTS = ("train", "held_out")
SPARE_BYTES = 1 << 20


def extract_features(params: FeaturesParams, images: Path, out: Path) -> None:
    """Write tokens of all images of the `prepare` folder `images`, and their statistics, to `out` in one atomic step.

    Without `params.store` the statistics are as exact, but tokens are not kept. Raises `NumericsError` for tokens that float16
    cannot hold, and what `load_encoder` and `ShardReader` raise.
    """
    shards = {part: ShardReader(images / part) for part in PARTS}
    encoder = load_encoder(params).to("cuda" if torch.cuda.is_available() else "cpu")
    field = FieldSpec("float16", (2, encoder.channels, params.grid, params.grid))
    rows = sum(len(shard) for shard in shards.values()) if params.store else 0
    require_disk(out, rows * field.row_bytes + SPARE_BYTES, "stage features")
    moments = StreamingMoments(encoder.channels)
    with atomic_dir(out) as folder:
        for part, shard in shards.items():
            if params.store:
                batches = _stored(_batches(encoder, shard, part, params.batch_size), folder / part, field, encoder, shard)
            else:
                TokenRecipe(params, params.batch_size, encoder.identity, shard.digest).write(folder / part)
                batches = _batches(encoder, shard, part, params.batch_size) if part == "train" else iter(())
            for tokens in batches:
                if part == "train":
                    moments.update(tokens.flatten(0, 1))
        save_statistics(folder / "statistics.safetensors", {"token": moments.statistics()})


def _stored(
    batches: Iterator[torch.Tensor], path: Path, field: FieldSpec, encoder: Encoder, images: ShardReader
) -> Iterator[torch.Tensor]:
    """Yield batches of tokens and write them to a shard."""
    meta = {"encoder": encoder.identity, "prepare": images.digest}
    with ShardWriter(path, {"tokens": field}, meta) as writer:
        for tokens in batches:
            writer.append(tokens=tokens.numpy())
            yield tokens


def _batches(encoder: Encoder, shard: ShardReader, part: str, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield tokens (N, 2, C, g, g) of images and mirror images; statistics are taken of these rounded values."""
    batches = shard["image"].blocks(batch_size)
    for batch in with_progress(batches, len(shard), f"features {part}", step=batch_size):
        images = torch.from_numpy(batch)
        pairs = torch.stack([encoder.tokens(images), encoder.tokens(images.flip(-1))], dim=1)
        yield rounded(pairs, f"tokens of {part} images").cpu()


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Images to patch tokens (outputs/features).").parse_args()
    extract_features(load_params().features, stage_dir("prepare"), stage_dir("features"))


if __name__ == "__main__":
    main()
