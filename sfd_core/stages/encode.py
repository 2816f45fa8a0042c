"""Stage `encode`: images and tokens to latents, frozen on disk.

    python -m sfd_core.stages.encode

writes `outputs/encode/{train,held_out}/` (label and the fields of z_tex, z_sem, z_pca, see `sfd_core.data.latents`),
`statistics.safetensors` (exact, over train) and `identity.json`, all of it or nothing.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfd_core.composite import StreamingMoments, save_statistics
from sfd_core.compressors import SemanticCompressors
from sfd_core.config import EncodeParams, load_params
from sfd_core.data.latents import latent_fields, moments_of, posterior_meta
from sfd_core.data.shard_writer import ShardWriter
from sfd_core.data.shards import FieldSpec, ShardReader
from sfd_core.errors import IdentityError, exits_cleanly
from sfd_core.identity import IDENTITY_FILE, STATISTICS_FILE, LatentIdentity
from sfd_core.latent_encoder import LatentEncoder, require_resolved
from sfd_core.models.vae_loader import load_texture_vae
from sfd_core.paths import atomic_dir, file_digest, require_disk, stage_dir, write_json
from sfd_core.stages.progress import with_progress
from sfd_core.tokens import TokenSource, open_tokens

PARTS = ("train", "held_out")
FIELDS = {"z_tex": "texture", "z_sem": "vae", "z_pca": "pca"}
"""Latent -> name of its statistics."""
SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class EncodeInputs:
    """The folders that `encode` reads."""

    prepare: Path
    features: Path
    texture_vae: Path
    semantic_vae: Path


def encode(params: EncodeParams, inputs: EncodeInputs, out: Path) -> None:
    """Write latents of all images, their statistics and their identity to `out` in one atomic step.

    Raises `IdentityError` if tokens and images are not of the same `prepare` run or the compressors of another encoder,
    `NumericsError` for latents that are not finite or that `params.dtype` cannot hold.
    """
    vae, texture_identity = load_texture_vae(inputs.texture_vae)
    compressors, semantic_identity = SemanticCompressors.load(inputs.semantic_vae)
    images = {part: ShardReader(inputs.prepare / part) for part in PARTS}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = {part: open_tokens(inputs.features / part, images[part], device) for part in PARTS}
    _require_one_origin(images, tokens, semantic_identity)
    encoder = LatentEncoder(params, vae, compressors, device)
    grid = tokens["train"].grid
    channels = {"z_tex": vae.shape.channels, "z_sem": compressors.vae.channels, "z_pca": compressors.pca.channels}
    fields = latent_fields(params.posterior, channels, params.dtype, grid)
    rows = sum(len(part) for part in images.values())
    require_disk(out, rows * (sum(field.row_bytes for field in fields.values()) + 8) + SPARE_BYTES, "stage encode")
    moments = {name: StreamingMoments(count) for name, count in channels.items()}
    with atomic_dir(out) as folder:
        for part in PARTS:
            meta = {
                "encoder": tokens[part].encoder,
                "classes": images[part].meta["classes"],
                "prepare": images[part].digest,
                **posterior_meta(params.posterior, part, params.seed),
            }
            all_fields = {**fields, "label": FieldSpec("int64", ())}
            with ShardWriter(folder / part, all_fields, meta) as writer:
                for latents, labels in _blocks(encoder, images[part], tokens[part], part):
                    writer.append(**{name: latent.numpy() for name, latent in latents.items()}, label=labels)
                    if part == "train":
                        for name, value in moments.items():
                            value.update(*moments_of(latents, name))
        statistics = {FIELDS[name]: value.statistics() for name, value in moments.items()}
        require_resolved(statistics, params)
        save_statistics(folder / STATISTICS_FILE, statistics)
        identity = LatentIdentity(
            texture_vae=texture_identity,
            semantic_vae=semantic_identity,
            encoder=tokens["train"].encoder,
            statistics=file_digest(folder / STATISTICS_FILE),
            latents=ShardReader(folder / "train", verify=False).digest,
            posterior=params.posterior,
        )
        write_json(folder / IDENTITY_FILE, asdict(identity))


def _require_one_origin(
    images: dict[str, ShardReader], tokens: dict[str, TokenSource], semantic_identity: dict[str, object]
) -> None:
    for part in PARTS:
        if tokens[part].prepare != images[part].digest:
            raise IdentityError(
                f"tokens of {part} were taken of other images than outputs/prepare holds; run `dvc repro features`"
            )
    if semantic_identity["encoder"] != tokens["train"].encoder:
        raise IdentityError(
            f"the Semantic VAE was trained on tokens of {semantic_identity['encoder']}, but these are of "
            f"{tokens['train'].encoder}; run `dvc repro semantic_vae`"
        )


def _blocks(
    encoder: LatentEncoder, images: ShardReader, tokens: TokenSource, part: str
) -> Iterator[tuple[dict[str, Tensor], NDArray[np.int64]]]:
    size = encoder.params.batch_size
    blocks = zip(images["image"].blocks(size), images["label"].blocks(size), strict=True)
    first = 0
    for pixels, labels in with_progress(blocks, len(images), f"encode {part}", step=size):
        yield encoder.encode(pixels, tokens.pairs(range(first, first + len(labels))), part, first), labels
        first += len(labels)


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Images and tokens to latents (outputs/encode).").parse_args()
    inputs = EncodeInputs(*(stage_dir(stage) for stage in ("prepare", "features", "texture_vae", "semantic_vae")))
    encode(load_params().encode, inputs, stage_dir("encode"))


if __name__ == "__main__":
    main()
