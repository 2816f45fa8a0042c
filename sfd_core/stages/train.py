"""Stage `train`: train the denoiser of one variant on the stored latents.

    python -m sfd_core.stages.train --variant sfd

writes `outputs/train/<variant>/`: `model.json`, `statistics.safetensors`, `snapshots/`, `history.csv`, `incidents.csv`
(steps that were skipped or whose loss spiked, with the images of their batches), `metrics.json`. Every GPU, or as many
processes as `SFD_PROCESSES` says, takes its share of each batch; on SIGTERM a checkpoint is written and the exit code is 85.
"""

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from sfd_core.data.store.shards import ShardReader
from sfd_core.experiment.code import stage_code
from sfd_core.experiment.params import EngineParams, TrainParams, VariantParams
from sfd_core.host.errors import PREEMPTED_EXIT_CODE, IdentityError, exits_cleanly
from sfd_core.host.paths import atomic_dir, require_disk, stage_dir, write_json
from sfd_core.host.processes import ALONE, Processes, spread
from sfd_core.latents.composite import Composite, LatentStatistics, load_statistics
from sfd_core.latents.decoded_tokens import open_decoded_tokens
from sfd_core.latents.identity import STATISTICS_FILE, LatentIdentity, read_latent_identity
from sfd_core.latents.stored import SEMANTIC_LATENTS, StoredLatent
from sfd_core.latents.tokens import TokenSource, open_tokens
from sfd_core.models.denoisers.dit import DiT
from sfd_core.models.denoisers.factory import LatentSpec, build_denoiser, flops_per_image, parameter_count
from sfd_core.sampling.artifact import DenoiserManifest, SnapshotRecord
from sfd_core.stages.start import begin_stage
from sfd_core.stages.training import Origin, run_training
from sfd_core.tracking.runs import training_run
from sfd_core.training.checkpoint import ResumeFolder, resume_key
from sfd_core.training.ema import EMA
from sfd_core.training.loop import PLAIN_ENGINE, TrainingPlan, TrainingResult
from sfd_core.training.parallel import training_device
from sfd_core.training.tasks.denoising import FlowTask, GaussianTask, LatentBatches

SAVED_STATES = 10
"""Copies of the weights on disk besides snapshots: model, EMA and two AdamW moments, in two checkpoints and some spare."""


@dataclass(frozen=True)
class TrainFolders:
    """The folders that `train` reads; of the last three only what the variant needs."""

    encode: Path
    features: Path
    prepare: Path
    semantic_vae: Path


@dataclass(frozen=True)
class TrainInputs:
    """What a variant is trained on, opened and checked."""

    latents: ShardReader
    tokens: TokenSource | None
    """What REPA aligns with: the encoder's tokens or those that the Semantic VAE decodes."""
    statistics: LatentStatistics
    identity: LatentIdentity
    spec: LatentSpec

    @classmethod
    def open(cls, variant: VariantParams, folders: TrainFolders, verify: bool = True) -> "TrainInputs":
        """Open the latents and, for REPA, its targets: tokens of `features`, computed of the images of `prepare` where none are
        stored, or those that the Semantic VAE decodes.

        All is verified before the first step, unless another process does it.
        """
        encode = folders.encode
        identity = read_latent_identity(encode)
        latents = ShardReader(encode / "train", verify)
        if latents.digest != identity.latents:
            raise IdentityError(
                f"{encode / 'train'} is not the shard that {encode / 'identity.json'} names; run `dvc repro encode`"
            )
        named = load_statistics(encode / STATISTICS_FILE)
        name, texture = SEMANTIC_LATENTS[variant.semantic], StoredLatent(latents, "z_tex")
        for latent in [texture] if name is None else [texture, StoredLatent(latents, name)]:
            if verify:
                latent.require_finite()
        statistics = LatentStatistics(named["texture"], None if name is None else named[variant.semantic])
        tokens: TokenSource | None = None
        if variant.repa.weight > 0 and variant.repa.targets == "semantic":
            tokens = open_decoded_tokens(latents, identity, folders.semantic_vae, training_device())
        elif variant.repa.weight > 0:
            tokens = _encoder_tokens(latents, folders, verify)
        composite = Composite(statistics)
        token_channels = 0 if tokens is None else tokens.channels
        spec = LatentSpec(composite.n_texture, composite.n_semantic, texture.grid, token_channels)
        return cls(latents, tokens, statistics, identity, spec)


def _encoder_tokens(latents: ShardReader, folders: TrainFolders, verify: bool) -> TokenSource:
    path = folders.features / "train"
    tokens = open_tokens(path, folders.prepare / "train", training_device(), verify)
    if tokens.prepare != latents.meta["prepare"]:
        raise IdentityError(f"{path} holds tokens of other images than {latents.path}; run `dvc repro encode`")
    return tokens


def train_variant(  # noqa: PLR0913 (what is trained, how, on what, and where)
    name: str,
    variant: VariantParams,
    train: TrainParams,
    inputs: TrainInputs,
    out: Path,
    engine: EngineParams = PLAIN_ENGINE,
    processes: Processes = ALONE,
) -> None:
    """Train one variant; the first process writes its artifact to `out` in one atomic step."""
    classes = inputs.latents.meta["classes"] if train.conditional else []
    model = build_denoiser(variant, inputs.spec, len(classes)).to(training_device())
    parameters = parameter_count(model)
    require_disk(out, 4 * parameters * (SAVED_STATES + 2 * train.snapshots), f"stage train, variant {name}")
    batches = LatentBatches(inputs.latents, Composite(inputs.statistics), variant, train, null=len(classes))
    task = GaussianTask(model, batches) if isinstance(model, DiT) else FlowTask(model, batches, variant, inputs.tokens)
    targets = [] if inputs.tokens is None else [inputs.tokens.digest]
    key = resume_key(name, variant, train, inputs=[inputs.latents.digest, inputs.identity.statistics, *targets])
    resume = ResumeFolder.of("train", key, stage_code("train"))
    plan = TrainingPlan(name, train.optimisation, variant.learning_rate, _snapshot_steps(train), engine=engine)
    ema = EMA(model, train.ema_decay, train.ema_warmup)
    result = run_training(task, plan, resume, training_run(name, train), processes, ema)
    if not processes.first:
        return
    manifest = DenoiserManifest(
        variant_name=name,
        variant=variant,
        latent=inputs.spec,
        classes=classes,
        identity=inputs.identity,
        parameters=parameters,
        flops_per_image=flops_per_image(model),
        snapshots=[
            SnapshotRecord(kept.step, kept.step * train.optimisation.batch_size, f"snapshots/{kept.path.name}")
            for kept in result.snapshots
        ],
    )
    _write(manifest, inputs.statistics, result, resume, out)
    for kept in resume.delete(engine.keeps):
        print(f"{name}: the checkpoint in {kept} is kept", file=sys.stderr)


def _snapshot_steps(train: TrainParams) -> tuple[int, ...]:
    steps, count = train.optimisation.steps, min(train.snapshots, train.optimisation.steps)
    return tuple(round(steps * (number + 1) / count) for number in range(count))


def _write(
    manifest: DenoiserManifest, statistics: LatentStatistics, result: TrainingResult, resume: ResumeFolder, out: Path
) -> None:
    origin = Origin.of(resume, result)
    metrics = {
        "steps": result.steps,
        **origin.metrics,
        "data_wait": result.data_wait,
        "skipped_steps": result.skipped_steps,
        "spikes": result.spikes,
        "parameters": manifest.parameters,
        "flops_per_image": manifest.flops_per_image,
    }
    with atomic_dir(out) as folder:
        (folder / "snapshots").mkdir()
        for kept in result.snapshots:
            shutil.copyfile(kept.path, folder / "snapshots" / kept.path.name)
        shutil.copyfile(resume.incidents_path, folder / "incidents.csv")
        statistics.save(folder / STATISTICS_FILE)
        manifest.write(folder)
        origin.write(folder)
        write_json(folder / "metrics.json", metrics)


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    parser = argparse.ArgumentParser(description="Train the denoiser of one variant (outputs/train/<variant>).")
    parser.add_argument("--variant", required=True, help="a key of `variants` in params.yaml")
    name = parser.parse_args().variant
    params = begin_stage("train", name)
    variant = params.variant(name)
    folders = TrainFolders(*(stage_dir(stage) for stage in ("encode", "features", "prepare", "semantic_vae")))
    spread(PREEMPTED_EXIT_CODE)
    processes = Processes.join()
    with processes.first_first():
        inputs = TrainInputs.open(variant, folders, verify=processes.first)
    train_variant(name, variant, params.train, inputs, stage_dir("train", name), params.engine, processes)
    processes.leave()


if __name__ == "__main__":
    main()
