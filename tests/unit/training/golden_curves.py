"""Short trainings of all variants of the committed experiment on fixed random latents, whose losses are kept as text.

    python tests/unit/training/golden_curves.py

writes them anew, for a change that is meant to change them.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from emoji import emoji
from torch import Tensor

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.experiment.params import VariantParams
from sfd_core.latents.composite import ChannelStatistics, Composite, LatentStatistics
from sfd_core.latents.tokens import Rows
from sfd_core.models.denoisers.dit import DiT
from sfd_core.models.denoisers.factory import LatentSpec, build_denoiser
from sfd_core.training.checkpoint import ResumeFolder
from sfd_core.training.ema import EMA
from sfd_core.training.history import read_history
from sfd_core.training.loop import TrainingPlan, run
from sfd_core.training.tasks.denoising import FlowTask, GaussianTask, LatentBatches

PARAMS = emoji()
FOLDER = Path(__file__).parent / "golden"
STEPS, BATCH, IMAGES, GRID, TOKEN_CHANNELS, CLASSES = 8, 16, 40, 4, 6, 3
CHANNELS = {"z_tex": 4, "z_sem": 2, "z_pca": 2}
SEMANTIC = {"none": None, "vae": "z_sem", "pca": "z_pca"}


class FixedTokens:
    """Tokens of an encoder that never was."""

    channels, grid = TOKEN_CHANNELS, GRID

    def read(self, rows: Rows, mirrored: Tensor) -> Tensor:
        tokens = np.random.default_rng(5).standard_normal((IMAGES, TOKEN_CHANNELS, GRID, GRID)).astype(np.float16)
        return torch.from_numpy(tokens[np.asarray(rows)])

    def tokens(self, read: Tensor) -> Tensor:
        return read


def latents(folder: Path) -> ShardReader:
    """Write and open the latents."""
    random = np.random.default_rng(0)
    fields = {name: FieldSpec("float32", (2, channels, GRID, GRID)) for name, channels in CHANNELS.items()}
    with ShardWriter(folder, fields | {"label": FieldSpec("int64", ())}, {}) as writer:
        values = {name: random.standard_normal((IMAGES, *spec.shape), dtype=np.float32) for name, spec in fields.items()}
        writer.append(**values, label=np.arange(IMAGES) % CLASSES)
    return ShardReader(folder)


def losses(variant: VariantParams, folder: Path) -> list[float]:
    """Return the loss of every step."""
    shard, semantic = latents(folder / "latents"), SEMANTIC[variant.semantic]
    parts = [ChannelStatistics(torch.zeros(CHANNELS[name]), torch.ones(CHANNELS[name])) for name in ("z_tex", semantic) if name]
    composite = Composite(LatentStatistics(parts[0], parts[1] if semantic else None))
    changes = {"steps": STEPS, "batch_size": BATCH, "warmup_steps": 2, "decay_steps": 0}
    train = PARAMS.train.model_copy(update={"optimisation": PARAMS.train.optimisation.model_copy(update=changes)})
    token_channels = TOKEN_CHANNELS if variant.repa.weight > 0 else 0
    spec = LatentSpec(composite.n_texture, composite.n_semantic, GRID, token_channels)
    model = build_denoiser(variant, spec, CLASSES)
    batches = LatentBatches(shard, composite, variant, train, CLASSES)
    tokens = FixedTokens() if token_channels else None
    task = GaussianTask(model, batches) if isinstance(model, DiT) else FlowTask(model, batches, variant, tokens)
    resume = ResumeFolder(folder / "resume")
    run(
        task,
        TrainingPlan("golden", train.optimisation, variant.learning_rate, log_every=1),
        resume,
        EMA(model, 0.9, warmup=True),
    )
    return [row["loss"] for row in read_history(resume.history_path)]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, variant in PARAMS.variants.items():
        with tempfile.TemporaryDirectory() as folder:
            lines = "\n".join(f"{loss:.6f}" for loss in losses(variant, Path(folder)))
        (FOLDER / f"{name}.txt").write_text(lines + "\n")


if __name__ == "__main__":
    main()
