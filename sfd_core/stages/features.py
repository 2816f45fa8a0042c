"""Stage `features`: images to patch tokens of the frozen semantic encoder.

    python -m sfd_core.stages.features

writes `outputs/features/{train,held_out}/` and `outputs/features/statistics.safetensors` (`token_mean`, `token_std` over
train), all of it or nothing. The folder of a part is a shard (tokens float16 (2, C, g, g): the image's and its mirror
image's), or with `features.store: false` the recipe by which `sfd_core.latents.tokens` computes the same tokens again.
Every GPU, or as many processes as `SFD_PROCESSES` says, takes its share of the work; a run that was killed goes on with the
pieces that are missing.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sfd_core.data.store.pieces import PiecedShard, rows_per_piece
from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.experiment.code import stage_code
from sfd_core.experiment.params import FeaturesParams, fingerprint
from sfd_core.host.errors import exits_cleanly
from sfd_core.host.paths import stage_dir
from sfd_core.host.processes import ALONE, Processes, spread
from sfd_core.host.resume import mixed_codes, resume_dir
from sfd_core.latents.composite import StreamingMoments, save_statistics
from sfd_core.latents.tokens import TokenRecipe, rounded
from sfd_core.models.encoders.encoder import Encoder, load_encoder
from sfd_core.stages.extraction import Extraction, Values, run_all
from sfd_core.stages.outlook import require_room, tell_of_forgotten
from sfd_core.stages.start import begin_stage

PARTS = ("train", "held_out")
SPARE_BYTES = 1 << 20


def extract_features(params: FeaturesParams, images: Path, out: Path, processes: Processes = ALONE) -> None:
    """Write tokens of all images of the `prepare` folder `images`, and their statistics, to `out` in one atomic step.

    Without `params.store` the statistics are as exact, but tokens are not kept. Raises `NumericsError` for tokens that float16
    cannot hold, and what `load_encoder` and `ShardReader` raise.
    """
    with processes.first_first():
        shards = {part: ShardReader(images / part, verify=processes.first) for part in PARTS}
        encoder = load_encoder(params).to(processes.device)
    work = resume_dir("features", _resume_key(params, shards, encoder, processes))
    stored = {"tokens": FieldSpec("float16", (2, encoder.channels, params.grid, params.grid))} if params.store else {}
    size = rows_per_piece(stored, params.batch_size)
    rows = {part: len(shards[part]) for part in (PARTS if params.store else ("train",))}
    row_bytes = sum(field.row_bytes for field in stored.values())
    if processes.first:
        tell_of_forgotten(work.parent, work)
    room = partial(require_room, work, out, sum(rows.values()) * row_bytes + SPARE_BYTES, "stage features")
    with processes.resumable_dir(out, work, stage_code("features"), room) as folder:
        parts = {
            part: Extraction(
                f"features {part}",
                PiecedShard((folder if params.store else work / "moments") / part, stored, count, size),
                params.batch_size,
                read=partial(_pixels, shards[part]),
                compute=partial(_tokens, encoder, part, params.store),
            )
            for part, count in rows.items()
        }
        run_all("features", parts, work, processes)
        if processes.first:
            _finish(params, folder, parts, shards, encoder, mixed_codes(work))


def _resume_key(params: FeaturesParams, shards: dict[str, ShardReader], encoder: Encoder, processes: Processes) -> str:
    """Return the hash of all that shapes the result."""
    digests = [shard.digest for shard in shards.values()]
    return fingerprint(params, digests, encoder.identity, processes.device.type)


def _pixels(shard: ShardReader, rows: range) -> NDArray[np.uint8]:
    return shard["image"][rows.start : rows.stop]


def _tokens(encoder: Encoder, part: str, store: bool, _: range, pixels: NDArray[np.uint8]) -> Values:
    """Return tokens (N, 2, C, g, g) of images and mirror images; statistics are taken of these rounded values, over train."""
    images = torch.from_numpy(pixels)
    pairs = rounded(torch.stack([encoder.tokens(images), encoder.tokens(images.flip(-1))], dim=1), f"tokens of {part} images")
    counted = {"token": StreamingMoments.of(pairs.flatten(0, 1))} if part == "train" else {}
    return Values({"tokens": pairs.cpu().numpy()} if store else {}, counted)


def _finish(
    params: FeaturesParams,
    folder: Path,
    parts: dict[str, Extraction[NDArray[np.uint8]]],
    shards: dict[str, ShardReader],
    encoder: Encoder,
    codes: dict[str, list[str]],
) -> None:
    for part, images in shards.items():
        if params.store:
            parts[part].shard.join({"encoder": encoder.identity, "prepare": images.digest} | codes)
        else:
            TokenRecipe(params, params.batch_size, encoder.identity, images.digest).write(folder / part)
    statistics = {name: _live(moments).statistics() for name, moments in parts["train"].counted().items()}
    save_statistics(folder / "statistics.safetensors", statistics)


def _live(moments: StreamingMoments) -> StreamingMoments:
    """Return the moments with deviation 1 instead of 0: a constant channel of an encoder carries nothing, and becomes 0."""
    state = moments.state()
    return StreamingMoments.from_state(state | {"squares": [squares or float(moments.count) for squares in state["squares"]]})


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Images to patch tokens (outputs/features).").parse_args()
    params = begin_stage("features").features
    spread()
    processes = Processes.join()
    extract_features(params, stage_dir("prepare"), stage_dir("features"), processes)
    processes.leave()


if __name__ == "__main__":
    main()
