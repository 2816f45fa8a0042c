"""Stage `semantic_vae`: the compressor of patch tokens, trained or published, and the PCA that ReDi uses in its place.

    python -m sfd_core.stages.semantic_vae

writes `outputs/semantic_vae/`: both compressors, `metrics.json` (held-out quality, linear probe) and `history.csv`, the curve
of the training, which has no rows where nothing was trained.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sfd_core.data.store.shards import ShardReader, evenly_spaced
from sfd_core.experiment.code import stage_code
from sfd_core.experiment.params import EngineParams, SemanticVAEParams
from sfd_core.host.errors import PREEMPTED_EXIT_CODE, DataError, exits_cleanly
from sfd_core.host.paths import atomic_dir, require_disk, stage_dir, write_json
from sfd_core.host.processes import ALONE, Processes, spread
from sfd_core.host.seeding import derive_seed
from sfd_core.latents.composite import ChannelStatistics, load_statistics
from sfd_core.latents.compressors import SemanticCompressors
from sfd_core.latents.tokens import Rows, TokenSource, open_tokens
from sfd_core.models.public.semantic_vae import semantic_vae_from
from sfd_core.models.public.weights import read_public_checkpoint
from sfd_core.models.vaes.pca import PCA
from sfd_core.models.vaes.semantic_vae import SemanticVAE, semantic_vae_loss
from sfd_core.stages.start import begin_stage
from sfd_core.stages.training import Origin, run_training
from sfd_core.tracking.runs import training_run
from sfd_core.training.checkpoint import ResumeFolder, resume_key
from sfd_core.training.loop import PLAIN_ENGINE, TrainingPlan
from sfd_core.training.parallel import training_device
from sfd_core.training.tasks.semantics import SemanticVAETask

SPARE_BYTES = 1 << 20
SAVED_STATES = 8
"""Copies of the weights on disk: the output, and model and two AdamW moments in two checkpoints, and some spare."""
BATCH = 256
PROBE_IMAGES = 20_000
"""Most images that a linear probe is fitted to, and most that it is scored on, spread over all classes."""


@dataclass(frozen=True)
class TokenSets:
    """Tokens of all images, and the channel statistics that they are standardised with."""

    train: TokenSource
    held_out: TokenSource
    statistics: ChannelStatistics

    @classmethod
    def open(cls, params: SemanticVAEParams, prepared: Path, features: Path) -> "TokenSets":
        """Open images and tokens. Raises `DataError` if tokens have fewer channels than PCA shall have components."""
        device = training_device()
        train, held_out = (open_tokens(features / part, prepared / part, device) for part in ("train", "held_out"))
        channels = train.channels
        if params.pca_channels > channels:
            raise DataError(f"semantic_vae.pca_channels {params.pca_channels} exceeds the encoder's {channels} token channels")
        measured = load_statistics(features / "statistics.safetensors")["token"]
        raw = ChannelStatistics(torch.zeros(channels), torch.ones(channels))
        return cls(train, held_out, measured if params.standardise else raw)

    @property
    def channels(self) -> int:
        """Channels of a token."""
        return self.train.channels


def make_semantic_vae(
    params: SemanticVAEParams,
    prepared: Path,
    features: Path,
    out: Path,
    engine: EngineParams = PLAIN_ENGINE,
    processes: Processes = ALONE,
) -> None:
    """Make both compressors, evaluate them on `features/held_out`, and write everything to `out` in one atomic step."""
    if params.weights is not None and not processes.first:
        return
    tokens = TokenSets.open(params, prepared, features)
    if params.weights is not None:
        vae = _published_vae(params, Path(params.weights), tokens.channels)
        _require_disk(vae, 1, out)
        _write(vae, Origin(), params, prepared, tokens, out)
    else:
        train_semantic_vae(params, prepared, tokens, out, engine, processes)


def train_semantic_vae(
    params: SemanticVAEParams, prepared: Path, tokens: TokenSets, out: Path, engine: EngineParams, processes: Processes
) -> None:
    """Train on all training tokens; a training that was broken off goes on where it stood."""
    vae = _fresh_vae(params, tokens.channels).to(training_device())
    _require_disk(vae, SAVED_STATES, out)
    resume = ResumeFolder.of("semantic_vae", resume_key(params, inputs=[tokens.train.digest]), stage_code("semantic_vae"))
    plan = TrainingPlan("Semantic VAE", params.optimisation, params.learning_rate, engine=engine.for_small_networks())
    task = SemanticVAETask(vae, tokens.train, tokens.statistics.to(training_device()), params)
    result = run_training(task, plan, resume, training_run("semantic_vae", params), processes)
    if not processes.first:
        return
    _write(vae.eval(), Origin.of(resume, result), params, prepared, tokens, out)
    resume.finish(out / "metrics.json", result.seconds)


def _published_vae(params: SemanticVAEParams, path: Path, token_channels: int) -> SemanticVAE:
    """Read a published checkpoint. Raises `DataError` if its sizes are not those of `params` and the encoder."""
    vae = semantic_vae_from(read_public_checkpoint(path), params.heads)
    found = {"channels": vae.channels, "width": vae.width, "depth": vae.depth, "the encoder's token channels": vae.in_channels}
    wanted = {
        "channels": params.channels,
        "width": params.width,
        "depth": params.depth,
        "the encoder's token channels": token_channels,
    }
    differing = [f"{name}: {found[name]} instead of {value}" for name, value in wanted.items() if found[name] != value]
    if differing:
        raise DataError(
            f"semantic_vae.weights {path} holds a Semantic VAE of other sizes ({'; '.join(differing)}); "
            "name the right file, mend the sizes, or take the encoder that it was trained on"
        )
    return vae.requires_grad_(False).to(training_device())


def _require_disk(vae: SemanticVAE, copies: int, out: Path) -> None:
    weights = 4 * sum(parameter.numel() for parameter in vae.parameters())
    require_disk(out, copies * weights + SPARE_BYTES, "stage semantic_vae")


def _fresh_vae(params: SemanticVAEParams, token_channels: int) -> SemanticVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(params.optimisation.seed, "initial weights"))
        return SemanticVAE(token_channels, params.channels, params.width, params.depth, params.heads)


def _write(vae: SemanticVAE, origin: Origin, params: SemanticVAEParams, prepared: Path, tokens: TokenSets, out: Path) -> None:
    compressors = SemanticCompressors(vae, _fit_pca(params, tokens), tokens.statistics)
    metrics = {**_measure(compressors.to(training_device()), prepared, tokens), **origin.metrics}
    with atomic_dir(out) as folder:
        compressors.to(torch.device("cpu")).save(folder, params, tokens.train.encoder)
        write_json(folder / "metrics.json", metrics)
        origin.write(folder)


def _fit_pca(params: SemanticVAEParams, tokens: TokenSets) -> PCA:
    pairs = (tokens.train.pairs(rows).cpu().float() for rows in _blocks(len(tokens.train)))
    return PCA.fit((tokens.statistics.normalise(block.flatten(0, 1)) for block in pairs), params.pca_channels)


@torch.no_grad()
def _measure(compressors: SemanticCompressors, prepared: Path, sets: TokenSets) -> dict[str, float]:
    totals = dict.fromkeys(("mse", "cosine", "kl", "pca_mse", "pca_cosine"), 0.0)
    for rows in _blocks(len(sets.held_out)):
        tokens = compressors.standardised(_plain(sets.held_out, rows))
        posterior = compressors.vae.encode(tokens)
        vae = semantic_vae_loss(compressors.vae.decode(posterior.mean), tokens, posterior, 0.0)
        pca = semantic_vae_loss(compressors.pca.decode(compressors.pca.encode(tokens)), tokens, posterior, 0.0)
        found = {"mse": vae["mse"], "cosine": 1 - vae["cosine"], "kl": vae["kl"]}
        found |= {"pca_mse": pca["mse"], "pca_cosine": 1 - pca["cosine"]}
        for name, value in found.items():
            totals[name] += value.item() * len(rows) / len(sets.held_out)
    named = {f"{name}_held_out": value for name, value in totals.items()}
    return named | _linear_probe(compressors, prepared, sets)


def _linear_probe(compressors: SemanticCompressors, prepared: Path, sets: TokenSets) -> dict[str, float]:
    """Return the held-out accuracy of a logistic regression from the flat latent to the class; nothing for a single class."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=200))
    # images lie class by class, so the first ones are of a few classes only
    train, held_out = (evenly_spaced(len(tokens), PROBE_IMAGES) for tokens in (sets.train, sets.held_out))
    labels = {
        part: ShardReader(prepared / part)["label"].take(rows) for part, rows in (("train", train), ("held_out", held_out))
    }
    if len(np.unique(labels["train"])) < 2:
        print("semantic VAE: all images are of one class, so there is no linear probe", file=sys.stderr)
        return {}
    probe.fit(_flat_latents(compressors, sets.train, train), labels["train"])
    found = probe.score(_flat_latents(compressors, sets.held_out, held_out), labels["held_out"])
    return {"linear_probe_top1": float(found)}


def _flat_latents(compressors: SemanticCompressors, source: TokenSource, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    blocks = (compressors.standardised(_plain(source, rows[part.start : part.stop])) for part in _blocks(len(rows)))
    return torch.cat([compressors.vae.encode(tokens).mean.flatten(1).cpu() for tokens in blocks]).numpy()


def _blocks(count: int) -> Iterator[range]:
    return (range(start, min(start + BATCH, count)) for start in range(0, count, BATCH))


def _plain(source: TokenSource, rows: Rows) -> torch.Tensor:
    """Return the tokens of images as they are, none mirrored, float32 on the CPU."""
    return source.tokens(source.read(rows, torch.zeros(len(rows), dtype=torch.bool))).cpu().float()


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Train or read the Semantic VAE, fit the PCA (outputs/semantic_vae).").parse_args()
    params = begin_stage("semantic_vae")
    spread(PREEMPTED_EXIT_CODE)
    processes = Processes.join()
    prepared, features, out = (stage_dir(stage) for stage in ("prepare", "features", "semantic_vae"))
    make_semantic_vae(params.semantic_vae, prepared, features, out, params.engine, processes)
    processes.leave()


if __name__ == "__main__":
    main()
