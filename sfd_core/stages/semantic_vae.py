"""Stage `semantic_vae`: train the compressor of patch tokens, and fit the PCA that ReDi uses in its place.

    python -m sfd_core.stages.semantic_vae

writes `outputs/semantic_vae/`: both compressors, `metrics.json` (held-out quality, linear probe), `history.csv`.
"""

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sfd_core.composite import ChannelStatistics, load_statistics
from sfd_core.compressors import SemanticCompressors
from sfd_core.config import SemanticVAEParams, load_params
from sfd_core.data.shards import ShardReader
from sfd_core.errors import DataError, exits_cleanly
from sfd_core.models.pca import PCA
from sfd_core.models.semantic_vae import SemanticVAE, semantic_vae_loss
from sfd_core.paths import atomic_dir, require_disk, stage_dir, write_json
from sfd_core.seeding import derive_seed
from sfd_core.tokens import TokenSource, open_tokens
from sfd_core.tracking.live import follow
from sfd_core.tracking.runs import training_run
from sfd_core.training.checkpoint import ResumeFolder, resume_key
from sfd_core.training.loop import TrainingPlan, TrainingResult, run, training_device
from sfd_core.training.semantics import SemanticVAETask

OUTPUT_BYTES = 64 << 20
BATCH = 256
PROBE_IMAGES = 20_000
"""Most images a linear probe is fitted to."""


def train_semantic_vae(params: SemanticVAEParams, prepared: Path, features: Path, out: Path) -> None:
    """Train on `features/train`, judge on `features/held_out`, and write everything to `out` in one atomic step."""
    train, held_out = (open_tokens(features / part, prepared / part, training_device()) for part in ("train", "held_out"))
    statistics = load_statistics(features / "statistics.safetensors")["token"]
    require_disk(out, OUTPUT_BYTES, "stage semantic_vae")
    if params.pca_channels > train.channels:
        raise DataError(
            f"semantic_vae.pca_channels {params.pca_channels} exceeds the encoder's {train.channels} token channels"
        )
    vae = _fresh_vae(params, train.channels).to(training_device())
    key = resume_key(params, inputs=[train.digest])
    resume = ResumeFolder.of("semantic_vae", key)
    plan = TrainingPlan("Semantic VAE", params.optimisation, params.learning_rate)
    with follow(training_run("semantic_vae", params), resume.history_path, key):
        result = run(SemanticVAETask(vae, train, statistics, params), plan, resume)
    pca = _fit_pca(params, train, statistics)
    compressors = SemanticCompressors(vae.cpu().eval(), pca, statistics)
    metrics = _judge(compressors, prepared, train, held_out) | _cost(result)
    with atomic_dir(out) as folder:
        compressors.save(folder, params, train.encoder)
        write_json(folder / "metrics.json", metrics)
        shutil.copyfile(resume.history_path, folder / "history.csv")
    resume.delete()


def _fresh_vae(params: SemanticVAEParams, token_channels: int) -> SemanticVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(params.optimisation.seed, "initial weights"))
        return SemanticVAE(token_channels, params.channels, params.width, params.depth, params.heads)


def _fit_pca(params: SemanticVAEParams, train: TokenSource, statistics: ChannelStatistics) -> PCA:
    pairs = (train.pairs(rows) for rows in _blocks(len(train)))
    return PCA.fit((statistics.normalise(block.float().flatten(0, 1)) for block in pairs), params.pca_channels).cpu()


@torch.no_grad()
def _judge(compressors: SemanticCompressors, prepared: Path, train: TokenSource, held_out: TokenSource) -> dict[str, float]:
    totals = dict.fromkeys(("mse", "cosine", "kl", "pca_mse", "pca_cosine"), 0.0)
    for rows in _blocks(len(held_out)):
        tokens = compressors.statistics.normalise(_plain(held_out, rows))
        posterior = compressors.vae.encode(tokens)
        vae = semantic_vae_loss(compressors.vae.decode(posterior.mean), tokens, posterior, 0.0)
        pca = semantic_vae_loss(compressors.pca.decode(compressors.pca.encode(tokens)), tokens, posterior, 0.0)
        found = {"mse": vae.mse, "cosine": 1 - vae.cosine, "kl": vae.kl, "pca_mse": pca.mse, "pca_cosine": 1 - pca.cosine}
        for name, value in found.items():
            totals[name] += value.item() * len(rows) / len(held_out)
    named = {f"{name}_held_out": value for name, value in totals.items()}
    return named | {"linear_probe_top1": _linear_probe(compressors, prepared, train, held_out)}


def _linear_probe(compressors: SemanticCompressors, prepared: Path, train: TokenSource, held_out: TokenSource) -> float:
    """Return the held-out accuracy of a logistic regression from the flat latent to the class."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=200))
    rows = slice(0, PROBE_IMAGES)
    labels = {part: np.asarray(ShardReader(prepared / part)["label"][rows]) for part in ("train", "held_out")}
    probe.fit(_flat_latents(compressors, train), labels["train"])
    return float(probe.score(_flat_latents(compressors, held_out), labels["held_out"]))


def _flat_latents(compressors: SemanticCompressors, source: TokenSource) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    blocks = (compressors.statistics.normalise(_plain(source, rows)) for rows in _blocks(min(len(source), PROBE_IMAGES)))
    return torch.cat([compressors.vae.encode(tokens).mean.flatten(1) for tokens in blocks]).numpy()


def _cost(result: TrainingResult) -> dict[str, float]:
    return {"images_seen": result.images_seen, "seconds": result.seconds, "images_per_second": result.images_per_second}


def _blocks(count: int) -> Iterator[range]:
    return (range(start, min(start + BATCH, count)) for start in range(0, count, BATCH))


def _plain(source: TokenSource, rows: range) -> torch.Tensor:
    """Return the tokens of images as they are, none mirrored, float32 on the CPU."""
    return source.chosen(rows, torch.zeros(len(rows), dtype=torch.bool)).cpu().float()


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Train the Semantic VAE and fit the PCA (outputs/semantic_vae).").parse_args()
    train_semantic_vae(load_params().semantic_vae, stage_dir("prepare"), stage_dir("features"), stage_dir("semantic_vae"))


if __name__ == "__main__":
    main()
