"""Stage `texture_vae`: the image VAE, trained on the prepared images or read from a published file.

    python -m sfd_core.stages.texture_vae

writes `outputs/texture_vae/`: weights, `metrics.json` (held-out quality), `reconstructions.png` and `history.csv`, the curve
of the training, which has no rows where nothing was trained.
"""

import argparse
from pathlib import Path

import torch
from torchvision.utils import save_image

from sfd_core.data.store.shards import ShardReader, evenly_spaced
from sfd_core.experiment.code import stage_code
from sfd_core.experiment.params import DiffusersVAEParams, EngineParams, LDMVAEParams, TextureVAEParams, TrainedVAEParams
from sfd_core.host.errors import PREEMPTED_EXIT_CODE, exits_cleanly
from sfd_core.host.paths import atomic_dir, require_disk, stage_dir, write_json
from sfd_core.host.processes import ALONE, Processes, spread
from sfd_core.host.progress import with_progress
from sfd_core.host.seeding import derive_seed, generator
from sfd_core.models.public.image_vae import read_published_vae
from sfd_core.models.vaes.image_vae import ImageVAE
from sfd_core.models.vaes.texture_vae import TextureVAE, TextureVAEShape, psnr
from sfd_core.stages.start import begin_stage
from sfd_core.stages.training import Origin, run_training
from sfd_core.tracking.runs import training_run
from sfd_core.training.checkpoint import ResumeFolder, resume_key
from sfd_core.training.loop import PLAIN_ENGINE, TrainingPlan
from sfd_core.training.parallel import training_device
from sfd_core.training.tasks.texture import TextureVAETask, to_signed

PCA_IMAGES = 4096
"""Images that the linear part is fitted to: far more patches than it has dimensions."""
SHOWN_IMAGES = 24
BLOCK = 128
OUTPUT_BYTES = 64 << 20
"""Room for weights, two resumable checkpoints and pictures."""
PUBLISHED_BYTES = 1 << 30
"""Room for the weights of a published VAE in float32, and pictures."""


def make_texture_vae(
    params: TextureVAEParams, prepared: Path, out: Path, engine: EngineParams = PLAIN_ENGINE, processes: Processes = ALONE
) -> None:
    """Make the VAE of `params`, evaluate it on `prepared/held_out`, and write everything to `out` in one atomic step."""
    if isinstance(params, TrainedVAEParams):
        train_texture_vae(params, prepared, out, engine, processes)
    elif processes.first:
        import_texture_vae(params, prepared, out)


def import_texture_vae(params: LDMVAEParams | DiffusersVAEParams, prepared: Path, out: Path) -> None:
    """Read a published VAE and convert it. Raises what `read_published_vae` raises."""
    require_disk(out, PUBLISHED_BYTES, "stage texture_vae")
    vae = read_published_vae(params)
    _write(vae.to(training_device()), ShardReader(prepared / "held_out"), Origin(), out)


def train_texture_vae(params: TrainedVAEParams, prepared: Path, out: Path, engine: EngineParams, processes: Processes) -> None:
    """Train on `prepared/train`; a training that was broken off goes on where it stood."""
    train, held_out = (ShardReader(prepared / part, verify=processes.first) for part in ("train", "held_out"))
    require_disk(out, OUTPUT_BYTES, "stage texture_vae")
    vae = _fresh_vae(params, train)
    task = TextureVAETask(vae, train["image"], params)
    resume = ResumeFolder.of("texture_vae", resume_key(params, inputs=[train.digest]), stage_code("texture_vae"))
    plan = TrainingPlan("texture VAE", params.optimisation, params.learning_rate, engine=engine.for_small_networks())
    result = run_training(task, plan, resume, training_run("texture_vae", params), processes)
    if not processes.first:
        return
    vae.cpu().eval()
    _write(vae, held_out, Origin.of(resume, result), out)
    resume.finish(out / "metrics.json", result.seconds)


def _fresh_vae(params: TrainedVAEParams, train: ShardReader) -> TextureVAE:
    shape = TextureVAEShape(params.channels, params.downsampling, params.width, params.depth)
    seed = params.optimisation.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "initial weights"))
        vae = TextureVAE(shape)
    chosen = torch.randperm(len(train), generator=generator(seed, "pca"))[:PCA_IMAGES].sort().values
    vae.start_from_pca(to_signed(torch.from_numpy(train["image"].take(chosen.numpy()))))
    return vae.to(memory_format=torch.channels_last).to(training_device())


def _write(vae: ImageVAE, held_out: ShardReader, origin: Origin, out: Path) -> None:
    metrics = {
        **_measure(vae, held_out),
        **origin.metrics,
        "parameters": sum(parameter.numel() for parameter in vae.parameters()),
    }
    shown = evenly_spaced(len(held_out), SHOWN_IMAGES)
    originals = to_signed(torch.from_numpy(held_out["image"].take(shown)))
    decoded = _reconstructed(vae, originals).clamp(-1, 1)
    with atomic_dir(out) as folder:
        vae.save(folder)
        write_json(folder / "metrics.json", metrics)
        origin.write(folder)
        save_image(torch.cat([originals, decoded]) / 2 + 0.5, folder / "reconstructions.png", nrow=len(shown), pad_value=1.0)


@torch.no_grad()
def _measure(vae: ImageVAE, held_out: ShardReader) -> dict[str, float]:
    """Return how well held-out images are reconstructed from the posterior's mean, and its divergence."""
    signals: list[torch.Tensor] = []
    kl: list[torch.Tensor] = []
    device = next(vae.parameters()).device
    for block in with_progress(held_out["image"].blocks(BLOCK), len(held_out), "texture VAE, held out", step=BLOCK):
        images = to_signed(torch.from_numpy(block).to(device))
        posterior = vae.encode(images)
        signals.append(psnr(images, vae.decode(posterior.mean)))
        kl.append(posterior.kl())
    return {"psnr_held_out": torch.cat(signals).mean().item(), "kl_held_out": torch.cat(kl).mean().item()}


@torch.no_grad()
def _reconstructed(vae: ImageVAE, images: torch.Tensor) -> torch.Tensor:
    return vae.decode(vae.encode(images.to(next(vae.parameters()).device)).mean).cpu()


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Train or read the image VAE (outputs/texture_vae).").parse_args()
    params = begin_stage("texture_vae")
    spread(PREEMPTED_EXIT_CODE)
    processes = Processes.join()
    make_texture_vae(params.texture_vae, stage_dir("prepare"), stage_dir("texture_vae"), params.engine, processes)
    processes.leave()


if __name__ == "__main__":
    main()
