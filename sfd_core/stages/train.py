"""Stage `train`: train the denoiser of one variant on the stored latents.

    python -m sfd_core.stages.train --variant sfd

writes `outputs/train/<variant>/`: `model.json`, `statistics.safetensors`, `snapshots/`, `history.csv`, `incidents.csv`
(steps that were skipped or whose loss spiked, with the images of their batches), `validation.csv`, `metrics.json`.
Every GPU, or as many processes as `SFD_PROCESSES` says, takes its share of each batch; on SIGTERM a checkpoint is written and
the exit code is 85.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sfd_core.data.store.shards import ShardReader
from sfd_core.experiment.code import stage_code
from sfd_core.experiment.params import EngineParams, TrainParams, VariantParams
from sfd_core.experiment.paths import with_found_path
from sfd_core.experiment.snapshots import snapshot_steps
from sfd_core.host.errors import PREEMPTED_EXIT_CODE, ConfigError, IdentityError, exits_cleanly
from sfd_core.host.paths import atomic_dir, stage_dir, write_json
from sfd_core.host.processes import ALONE, Processes, spread
from sfd_core.latents.composite import Composite, LatentStatistics, load_statistics
from sfd_core.latents.decoded_tokens import open_decoded_tokens
from sfd_core.latents.identity import STATISTICS_FILE, LatentIdentity, open_training_latents
from sfd_core.latents.stored import SEMANTIC_LATENTS, StoredLatent
from sfd_core.latents.tokens import RepaTargets, TokenSource, open_tokens, target_flops
from sfd_core.models.denoisers.dit import DiT
from sfd_core.models.denoisers.factory import LatentSpec, build_denoiser, flops_per_image, parameter_count
from sfd_core.sampling.artifact import MODEL_FILE, DenoiserManifest, SnapshotRecord
from sfd_core.sampling.guides import require_same_order
from sfd_core.stages.outlook import require_room
from sfd_core.stages.start import begin_stage
from sfd_core.stages.training import Origin, run_training
from sfd_core.tracking.runs import training_run
from sfd_core.training.checkpoint import ResumeFolder, resume_key
from sfd_core.training.ema import EMA
from sfd_core.training.loop import PLAIN_ENGINE, TrainingPlan, TrainingResult
from sfd_core.training.parallel import training_device
from sfd_core.training.power_ema import AVERAGES, Averages, power_averages
from sfd_core.training.tasks.denoising import FlowTask, GaussianTask, LatentBatches
from sfd_core.training.tasks.validation import VALIDATION_FILE, ValidationCurve, ValidationLoss, write_empty_validation

IN_A_CHECKPOINT = 4
"""Copies of the weights: model, EMA and two AdamW moments."""
SPARE = 2


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
    held_out: Path
    """The shard of held-out latents, which is opened where it is needed."""
    tokens: RepaTargets | None
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
        latents, identity = open_training_latents(encode, verify)
        named = load_statistics(encode / STATISTICS_FILE)
        name, texture = SEMANTIC_LATENTS[variant.semantic], StoredLatent(latents, "z_tex")
        for latent in [texture] if name is None else [texture, StoredLatent(latents, name)]:
            if verify:
                latent.require_finite()
        statistics = LatentStatistics(named["texture"], None if name is None else named[variant.semantic])
        tokens: RepaTargets | None = None
        if variant.repa.weight > 0 and variant.repa.targets == "semantic":
            tokens = open_decoded_tokens(latents, identity, folders.semantic_vae, training_device())
        elif variant.repa.weight > 0:
            tokens = _encoder_tokens(latents, folders, verify)
        composite = Composite(statistics)
        token_channels = 0 if tokens is None else tokens.channels
        spec = LatentSpec(composite.n_texture, composite.n_semantic, texture.grid, token_channels)
        return cls(latents, encode / "held_out", tokens, statistics, identity, spec)


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
    recorded: bool = True,
) -> ResumeFolder:
    """Train one variant; the first process writes its artifact to `out` in one atomic step.

    DVC records it there, unless it is not `recorded`: then the checkpoints stay in the folder that is returned.
    """
    classes = inputs.latents.meta["classes"] if train.conditional else []
    model = build_denoiser(variant, inputs.spec, len(classes)).to(training_device())
    parameters, flops = parameter_count(model), flops_per_image(model)  # of what may soon be cut in shards
    batches = LatentBatches(inputs.latents, Composite(inputs.statistics), variant, train, null=len(classes))
    task = GaussianTask(model, batches) if isinstance(model, DiT) else FlowTask(model, batches, variant, inputs.tokens)
    targets = [] if inputs.tokens is None else [inputs.tokens.digest]
    key = resume_key(name, variant, train, inputs=[inputs.latents.digest, inputs.identity.statistics, *targets])
    resume = ResumeFolder.of("train", key, stage_code("train"))
    if processes.first:
        require_room(resume.path, out, 4 * parameters * _saved_copies(train, engine), f"stage train, variant {name}")
    plan = TrainingPlan(name, train.optimisation, variant.learning_rate, snapshot_steps(train), engine=engine)
    sharded = engine.sharding != "none" and processes.count > 1
    ema = power_averages(model, EMA(model, train.ema_decay, train.ema_warmup), train.power_emas, sharded)
    validation = _validation(variant, train, inputs, resume) if processes.first else None

    def keep(step: int, weights: Mapping[str, Tensor]) -> None:
        if isinstance(ema, Averages):
            ema.save(step, resume.path / AVERAGES)
        if validation is not None:
            losses = validation.add(step, weights)
            shown = ", ".join(f"{part} {loss:.4g}" for part, loss in losses.items())
            print(f"{name}: step {step}, validation loss: {shown}", file=sys.stderr, flush=True)

    result = run_training(task, plan, resume, training_run(name, train), processes, ema, keep)
    if not processes.first:
        return resume
    if validation is not None:
        validation.complete(result.snapshots)
    manifest = DenoiserManifest(
        variant_name=name,
        variant=variant,
        latent=inputs.spec,
        classes=classes,
        identity=inputs.identity,
        parameters=parameters,
        flops_per_image=flops,
        target_flops_per_image=0 if inputs.tokens is None else target_flops(inputs.tokens),
        knows_null_class=not classes or train.class_dropout > 0,
        snapshots=[
            SnapshotRecord(kept.step, kept.step * train.optimisation.batch_size, f"snapshots/{kept.path.name}")
            for kept in result.snapshots
        ],
    )
    _write(manifest, inputs.statistics, result, resume, out)
    if recorded:
        for kept in resume.finish(out / "metrics.json", result.seconds, engine.keeps):
            print(f"{name}: the checkpoint in {kept} is kept", file=sys.stderr)
    return resume


def _saved_copies(train: TrainParams, engine: EngineParams) -> int:
    """Return how many copies of the weights lie on the disk at the end: in checkpoints, and in snapshots twice."""
    averages, steps = len(train.power_emas), train.optimisation.steps
    kept: set[int] = {*engine.milestones, *range(0, steps + 1, engine.keep_every or steps + 1)}
    checkpoints = engine.keep_last + sum(0 < step <= steps for step in kept)
    return checkpoints * (IN_A_CHECKPOINT + averages) + SPARE + 2 * train.snapshots * (1 + averages)


def _validation(
    variant: VariantParams, train: TrainParams, inputs: TrainInputs, resume: ResumeFolder
) -> ValidationCurve | None:
    """Return the curve of validation losses; None if the parameters ask for none."""
    if train.validation_images == 0:
        return None
    classes = inputs.latents.meta["classes"] if train.conditional else []
    model = build_denoiser(variant, inputs.spec, len(classes)).to(training_device())
    loss = ValidationLoss(model, variant, Composite(inputs.statistics), ShardReader(inputs.held_out), train.validation_images)
    return ValidationCurve(resume.path / VALIDATION_FILE, loss)


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
        if (resume.path / AVERAGES).is_dir():
            shutil.copytree(resume.path / AVERAGES, folder / "snapshots" / AVERAGES)
        shutil.copyfile(resume.incidents_path, folder / "incidents.csv")
        if (resume.path / VALIDATION_FILE).is_file():
            shutil.copyfile(resume.path / VALIDATION_FILE, folder / VALIDATION_FILE)
        else:
            write_empty_validation(folder / VALIDATION_FILE)
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
    variant = with_found_path(params.variant(name), stage_dir("schedule"))
    if variant.path is not None:
        try:
            params.check_budget(f"variants.{name}.path", variant.path)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    sampler = params.evaluate.sampler
    if sampler.guide is not None and (Path(sampler.guide) / MODEL_FILE).is_file():
        require_same_order(DenoiserManifest.read(Path(sampler.guide)).variant, variant, sampler)
    folders = TrainFolders(*(stage_dir(stage) for stage in ("encode", "features", "prepare", "semantic_vae")))
    spread(PREEMPTED_EXIT_CODE)
    processes = Processes.join()
    with processes.first_first():
        inputs = TrainInputs.open(variant, folders, verify=processes.first)
    train_variant(name, variant, params.train, inputs, stage_dir("train", name), params.engine, processes)
    processes.leave()


if __name__ == "__main__":
    main()
