"""Stage `encode`: images and tokens to latents, frozen on disk.

    python -m sfd_core.stages.encode

writes `outputs/encode/{train,held_out}/` (label and the fields of z_tex, z_sem, z_pca, see `sfd_core.latents.stored`),
`statistics.safetensors` (exact, over train) and `identity.json`, all of it or nothing. Every GPU, or as many processes as
`SFD_PROCESSES` says, takes its share of the work; a run that was killed goes on with the pieces that are missing.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfd_core.data.store.pieces import PiecedShard, rows_per_piece
from sfd_core.data.store.shards import FieldSpec, ShardReader, evenly_spaced
from sfd_core.experiment.code import stage_code
from sfd_core.experiment.params import EncodeParams, fingerprint
from sfd_core.host.errors import IdentityError, exits_cleanly
from sfd_core.host.paths import file_digest, stage_dir, write_json
from sfd_core.host.processes import ALONE, Processes, spread
from sfd_core.host.resume import mixed_codes, resume_dir
from sfd_core.latents.composite import ChannelStatistics, StreamingMoments, save_statistics
from sfd_core.latents.compressors import CONFIG_FILE, SemanticCompressors
from sfd_core.latents.encoder import LatentEncoder, pixel_energy, require_resolved
from sfd_core.latents.identity import IDENTITY_FILE, STATISTICS_FILE, LatentIdentity
from sfd_core.latents.stored import Rows, StoredLatent, latent_fields, moments_of, posterior_meta
from sfd_core.latents.tokens import TokenSource, open_tokens
from sfd_core.models.vaes.loader import load_texture_vae
from sfd_core.stages.extraction import Extraction, Values, run_all
from sfd_core.stages.outlook import require_room, tell_of_forgotten
from sfd_core.stages.start import begin_stage

PARTS = ("train", "held_out")
LATENTS = {"z_tex": "texture", "z_sem": "vae", "z_pca": "pca"}
"""Latent -> name of its statistics."""
SPARE_BYTES = 1 << 20
ENERGY_IMAGES = 256
"""Training images over which the pixel energy of a texture channel is measured."""
TRIED_IMAGES = 256
"""Training images of which the resolution of float16 is judged before all are encoded."""
TRIED_SLACK = 2.0
"""By so much a few images may vary less than all."""

Block = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images (N, 3, R, R) and labels (N,)."""


@dataclass(frozen=True)
class EncodeInputs:
    """The folders that `encode` reads."""

    prepare: Path
    features: Path
    texture_vae: Path
    semantic_vae: Path


def encode(params: EncodeParams, inputs: EncodeInputs, out: Path, processes: Processes = ALONE) -> None:
    """Write latents of all images, their statistics and their identity to `out` in one atomic step.

    Raises `IdentityError` if tokens and images are not of the same `prepare` run or the compressors of another encoder,
    `NumericsError` for latents that are not finite or that `params.dtype` cannot hold.
    """
    with processes.first_first():
        sources = Sources.open(params, inputs, processes)
    work = resume_dir("encode", sources.resume_key(params, processes))
    rows = sum(len(images) for images in sources.images.values())
    row_bytes = sum(field.row_bytes for field in sources.fields(params).values())
    if processes.first:
        tell_of_forgotten(work.parent, work)

    def check() -> None:
        require_room(work, out, rows * row_bytes + SPARE_BYTES, "stage encode")
        sources.require_resolved(params)

    with processes.resumable_dir(out, work, stage_code("encode"), check) as folder:
        parts = sources.extractions(params, folder)
        run_all("encode", parts, work, processes)
        if processes.first:
            _finish(params, sources, folder, parts, mixed_codes(work))


@dataclass(frozen=True)
class Sources:
    """All that latents are made of, opened and checked."""

    images: dict[str, ShardReader]
    tokens: dict[str, TokenSource]
    encoder: LatentEncoder
    texture_identity: Mapping[str, Any]
    semantic_identity: Mapping[str, Any]
    networks: list[str]
    """Hashes of what describes both networks: not all of it, such as the number of heads, follows from their weights."""

    @classmethod
    def open(cls, params: EncodeParams, inputs: EncodeInputs, processes: Processes) -> Self:
        """Open everything on the process's device; the first process checks the content of all files."""
        vae, texture_identity = load_texture_vae(inputs.texture_vae)
        compressors, semantic_identity = SemanticCompressors.load(inputs.semantic_vae)
        images = {part: ShardReader(inputs.prepare / part, verify=processes.first) for part in PARTS}
        tokens = {
            part: open_tokens(inputs.features / part, images[part], processes.device, verify=processes.first) for part in PARTS
        }
        _require_one_origin(images, tokens, semantic_identity)
        encoder = LatentEncoder(params, vae, compressors, processes.device)
        networks = [file_digest(folder / CONFIG_FILE) for folder in (inputs.texture_vae, inputs.semantic_vae)]
        return cls(images, tokens, encoder, texture_identity, semantic_identity, networks)

    def fields(self, params: EncodeParams) -> dict[str, FieldSpec]:
        """Return the fields of the shards."""
        compressors, grid = self.encoder.compressors, self.tokens["train"].grid
        channels = {
            "z_tex": self.encoder.vae.shape.channels,
            "z_sem": compressors.vae.channels,
            "z_pca": compressors.pca.channels,
        }
        return latent_fields(params.posterior, channels, params.dtype, grid) | {"label": FieldSpec("int64", ())}

    def extractions(self, params: EncodeParams, folder: Path) -> dict[str, Extraction[Block]]:
        """Return the work on each part, whose shard lies in `folder`."""
        fields = self.fields(params)
        return {
            part: Extraction(
                f"encode {part}",
                PiecedShard(folder / part, fields, len(images), rows_per_piece(fields, params.batch_size)),
                params.batch_size,
                read=partial(_pixels_and_labels, images),
                compute=partial(_latents, self, part),
            )
            for part, images in self.images.items()
        }

    def require_resolved(self, params: EncodeParams) -> None:
        """Raise `NumericsError` if a few training images show that float16 is too coarse, which all tell only at the end."""
        if params.dtype == "float32":
            return
        total: dict[str, StreamingMoments] = {}
        tried = evenly_spaced(len(self.images["train"]), TRIED_IMAGES)
        for start in range(0, len(tried), params.batch_size):
            rows = tried[start : start + params.batch_size]
            values = _latents(self, "train", rows, _pixels_and_labels(self.images["train"], rows))
            for name, moments in values.counted.items():
                total.setdefault(name, StreamingMoments(moments.channels)).merge(moments)
        require_resolved({name: moments.statistics() for name, moments in total.items()}, params, TRIED_SLACK)

    def texture_energy(self, train: Path, statistics: ChannelStatistics) -> Tensor:
        """Return `pixel_energy` over images that are spread evenly over the encoded shard `train`."""
        shard = ShardReader(train, verify=False)
        rows = evenly_spaced(len(shard), ENERGY_IMAGES)
        z = StoredLatent(shard, "z_tex").frozen(rows, torch.zeros(len(rows), dtype=torch.bool))
        return pixel_energy(self.encoder.vae, z.to(self.encoder.device), statistics)

    def resume_key(self, params: EncodeParams, processes: Processes) -> str:
        """Return the hash of all that shapes the result."""
        digests = [source.digest for sources in (self.images, self.tokens) for source in sources.values()]
        identities = [self.texture_identity, self.semantic_identity]
        return fingerprint(params, digests, identities, self.networks, processes.device.type)


def _require_one_origin(
    images: dict[str, ShardReader], tokens: dict[str, TokenSource], semantic_identity: Mapping[str, object]
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


def _pixels_and_labels(images: ShardReader, rows: Rows) -> Block:
    chosen = np.asarray(rows)
    return images["image"].take(chosen), images["label"].take(chosen)


def _latents(sources: Sources, part: str, rows: Rows, block: Block) -> Values:
    pixels, labels = block
    fields = sources.encoder.encode(pixels, sources.tokens[part].pairs(rows), part, rows)
    counted = {}
    if part == "train":
        counted = {statistics: StreamingMoments.of(*moments_of(fields, name)) for name, statistics in LATENTS.items()}
    return Values({name: field.cpu().numpy() for name, field in fields.items()} | {"label": labels}, counted)


def _finish(
    params: EncodeParams, sources: Sources, folder: Path, parts: dict[str, Extraction[Block]], codes: dict[str, list[str]]
) -> None:
    statistics = {name: moments.statistics() for name, moments in parts["train"].counted().items()}
    require_resolved(statistics, params)
    for part, images in sources.images.items():
        meta = {"encoder": sources.tokens[part].encoder, "classes": images.meta["classes"], "prepare": images.digest}
        parts[part].shard.join(meta | posterior_meta(params.posterior, part, params.seed) | codes)
    if params.texture_energy_power > 0:
        energy = sources.texture_energy(folder / "train", statistics["texture"])
        statistics["texture"] = statistics["texture"].scaled(energy**params.texture_energy_power)
    save_statistics(folder / STATISTICS_FILE, statistics)
    identity = LatentIdentity(
        texture_vae=sources.texture_identity,
        semantic_vae=sources.semantic_identity,
        encoder=sources.tokens["train"].encoder,
        statistics=file_digest(folder / STATISTICS_FILE),
        latents=ShardReader(folder / "train", verify=False).digest,
        posterior=params.posterior,
    )
    write_json(folder / IDENTITY_FILE, asdict(identity))


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Images and tokens to latents (outputs/encode).").parse_args()
    params = begin_stage("encode").encode
    inputs = EncodeInputs(*(stage_dir(stage) for stage in ("prepare", "features", "texture_vae", "semantic_vae")))
    spread()
    processes = Processes.join()
    encode(params, inputs, stage_dir("encode"), processes)
    processes.leave()


if __name__ == "__main__":
    main()
