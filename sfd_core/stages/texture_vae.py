"""Stage `texture_vae`: train the image VAE on the prepared images.

    python -m sfd_core.stages.texture_vae

writes `outputs/texture_vae/`: weights, `metrics.json` (held-out quality), `history.csv` and `reconstructions.png`.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from torchvision.utils import save_image

from sfd_core.config import TextureVAEParams, load_params
from sfd_core.data.shards import ShardReader
from sfd_core.errors import exits_cleanly
from sfd_core.models.texture_vae import TextureVAE, TextureVAEShape, psnr
from sfd_core.paths import atomic_dir, require_disk, stage_dir, write_json
from sfd_core.seeding import derive_seed, generator
from sfd_core.tracking.live import follow
from sfd_core.tracking.runs import training_run
from sfd_core.training.checkpoint import ResumeFolder, resume_key
from sfd_core.training.loop import TrainingPlan, TrainingResult, run, training_device
from sfd_core.training.texture import TextureVAETask, to_signed

PCA_IMAGES = 4096
"""Images that the linear part is fitted to: far more patches than it has dimensions."""
SHOWN_IMAGES = 24
OUTPUT_BYTES = 64 << 20
"""Room for weights, two resumable checkpoints and pictures."""


def train_texture_vae(params: TextureVAEParams, prepared: Path, out: Path) -> None:
    """Train on `prepared/train`, judge on `prepared/held_out`, and write everything to `out` in one atomic step."""
    train, held_out = ShardReader(prepared / "train"), ShardReader(prepared / "held_out")
    require_disk(out, OUTPUT_BYTES, "stage texture_vae")
    vae = _fresh_vae(params, train)
    task = TextureVAETask(vae, train["image"], params)
    key = resume_key(params, inputs=[train.digest])
    resume = ResumeFolder.of("texture_vae", key)
    plan = TrainingPlan("texture VAE", params.optimisation, params.learning_rate)
    with follow(training_run("texture_vae", params), resume.history_path, key):
        result = run(task, plan, resume)
    _write(vae.cpu().eval(), held_out, result, resume, out)
    resume.delete()


def _fresh_vae(params: TextureVAEParams, train: ShardReader) -> TextureVAE:
    shape = TextureVAEShape(params.channels, params.downsampling, params.width, params.depth)
    seed = params.optimisation.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "initial weights"))
        vae = TextureVAE(shape)
    chosen = torch.randperm(len(train), generator=generator(seed, "pca"))[:PCA_IMAGES].sort().values
    vae.start_from_pca(to_signed(torch.from_numpy(train["image"].take(chosen.numpy()))))
    return vae.to(memory_format=torch.channels_last).to(training_device())


@torch.no_grad()
def _write(vae: TextureVAE, held_out: ShardReader, result: TrainingResult, resume: ResumeFolder, out: Path) -> None:
    signals: list[torch.Tensor] = []
    kl: list[torch.Tensor] = []
    for block in held_out["image"].blocks(128):
        images = to_signed(torch.from_numpy(block))
        posterior = vae.encode(images)
        signals.append(psnr(images, vae.decode(posterior.mean)))
        kl.append(posterior.kl())
    metrics = {
        "psnr_held_out": torch.cat(signals).mean().item(),
        "kl_held_out": torch.cat(kl).mean().item(),
        "images_seen": result.images_seen,
        "seconds": result.seconds,
        "images_per_second": result.images_per_second,
        "parameters": sum(parameter.numel() for parameter in vae.parameters()),
    }
    shown = np.linspace(0, len(held_out) - 1, min(SHOWN_IMAGES, len(held_out))).astype(np.int64)
    originals = to_signed(torch.from_numpy(held_out["image"].take(shown)))
    decoded = vae.decode(vae.encode(originals).mean).clamp(-1, 1)
    with atomic_dir(out) as folder:
        vae.save(folder)
        write_json(folder / "metrics.json", metrics)
        shutil.copyfile(resume.history_path, folder / "history.csv")
        save_image(torch.cat([originals, decoded]) / 2 + 0.5, folder / "reconstructions.png", nrow=len(shown), pad_value=1.0)


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Train the image VAE (outputs/texture_vae).").parse_args()
    train_texture_vae(load_params().texture_vae, stage_dir("prepare"), stage_dir("texture_vae"))


if __name__ == "__main__":
    main()
