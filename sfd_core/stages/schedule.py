"""Stage `schedule`: find the path of the variants that have `found_path`, by a short training.

    python -m sfd_core.stages.schedule

writes `outputs/schedule/path.json`: the corners (t_tex, t_sem) of the path, or null if `schedule` is null. Kind `least_cost`
trains the probe with independent times, measures its error field (`field.npz`, see `diffusion.error_field`) and takes the path
that costs least on it; kind `learned` trains the path together with the probe (`training.tasks.learned_path`).
"""

import argparse
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import cast

from sfd_core.data.store.shards import ShardReader
from sfd_core.diffusion.error_field import PathCosts, least_cost_path
from sfd_core.evaluation.error_field import measure_error_field, write_field
from sfd_core.experiment.code import stage_code
from sfd_core.experiment.params import (
    EngineParams,
    IndependentTimes,
    LearnedSchedule,
    LeastCostSchedule,
    Params,
    RepaParams,
    TrainParams,
    VariantParams,
)
from sfd_core.experiment.paths import PATH_FILE
from sfd_core.host.errors import PREEMPTED_EXIT_CODE, exits_cleanly
from sfd_core.host.paths import atomic_dir, stage_dir, write_json
from sfd_core.host.processes import Processes, spread
from sfd_core.latents.composite import Composite
from sfd_core.models.denoisers.factory import build_denoiser
from sfd_core.models.denoisers.lightningdit import LightningDiT
from sfd_core.sampling.artifact import load_denoiser
from sfd_core.stages.start import begin_stage
from sfd_core.stages.train import TrainFolders, TrainInputs, train_variant
from sfd_core.stages.training import run_training
from sfd_core.tracking.runs import training_run
from sfd_core.training.checkpoint import ResumeFolder, resume_key
from sfd_core.training.loop import TrainingPlan
from sfd_core.training.parallel import training_device
from sfd_core.training.tasks.denoising import LatentBatches
from sfd_core.training.tasks.learned_path import LearnedPathTask, PathLearner

PROBE = "probe"
BATCH = 256
"""Held-out images a forward pass."""
Corners = list[list[float]]


def find_path(params: Params, folders: TrainFolders, out: Path, processes: Processes) -> None:
    """Write `path.json` and, where there is one, `field.npz` to `out` in one atomic step; the first process writes."""
    schedule, trained = params.schedule, None
    with atomic_dir(out) if processes.first else nullcontext(out) as folder:
        path = None
        if schedule is not None:
            variant, train = _probe(schedule, params.train)
            with processes.first_first():
                inputs = TrainInputs.open(variant, folders, verify=processes.first)
            if isinstance(schedule, LeastCostSchedule):
                trained = train_variant(PROBE, variant, train, inputs, folder / PROBE, params.engine, processes, recorded=False)
                path = _least_cost(schedule, inputs, folder) if processes.first else None
            else:
                path, trained = _learned(schedule, variant, train, inputs, params.engine, processes)
        if processes.first:
            write_json(folder / PATH_FILE, path)
    if trained is not None and processes.first:
        trained.finish()


def _probe(schedule: LeastCostSchedule | LearnedSchedule, train: TrainParams) -> tuple[VariantParams, TrainParams]:
    """Return the probe, a variant of independent times, and how it is trained."""
    variant = VariantParams(
        model="lightningdit",
        size=schedule.size,
        patch=schedule.patch,
        semantic=schedule.semantic,
        delta_t=0.0,
        times=IndependentTimes(kind="independent", absent=0.0),
        semantic_weight=schedule.semantic_weight,
        cosine_weight=1.0,
        repa=RepaParams(weight=0.0, mode="cosine", targets="encoder", block=1, width=1),
        mask_clamped=False,
        learning_rate=schedule.learning_rate,
        seed=schedule.seed,
    )
    shorter = {"steps": schedule.steps, "warmup_steps": min(train.optimisation.warmup_steps, schedule.steps // 10)}
    optimisation = train.optimisation.model_copy(update=shorter | {"decay_steps": 0})
    kept = {"snapshots": 1, "ema_warmup": True, "validation_images": 0, "power_emas": [], "optimisation": optimisation}
    return variant, train.model_copy(update=kept)


def _least_cost(schedule: LeastCostSchedule, inputs: TrainInputs, folder: Path) -> Corners:
    denoiser = load_denoiser(folder / PROBE)
    denoiser.model.to(training_device())
    field = measure_error_field(
        denoiser, ShardReader(inputs.held_out), schedule.points, schedule.images, BATCH, training_device()
    )
    write_field(folder / "field.npz", field)
    shutil.rmtree(folder / PROBE)
    return [list(corner) for corner in least_cost_path(PathCosts(field, schedule.semantic_weight, schedule.weighting))]


def _learned(
    schedule: LearnedSchedule,
    variant: VariantParams,
    train: TrainParams,
    inputs: TrainInputs,
    engine: EngineParams,
    processes: Processes,
) -> tuple[Corners, ResumeFolder]:
    classes = inputs.latents.meta["classes"] if train.conditional else []
    denoiser = cast(LightningDiT, build_denoiser(variant, inputs.spec, len(classes)))  # no DiT has semantics
    model = PathLearner(denoiser, schedule.knots).to(training_device())
    batches = LatentBatches(inputs.latents, Composite(inputs.statistics), variant, train, null=len(classes))
    key = resume_key(schedule, variant, train, inputs=[inputs.latents.digest, inputs.identity.statistics])
    resume = ResumeFolder.of("schedule", key, stage_code("schedule"))
    plan = TrainingPlan("path", train.optimisation, variant.learning_rate, engine=engine)
    run_training(LearnedPathTask(model, batches, schedule), plan, resume, training_run("path", train), processes)
    return model.corners(), resume


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Find the path of variants with found_path (outputs/schedule).").parse_args()
    params = begin_stage("schedule")
    folders = TrainFolders(*(stage_dir(stage) for stage in ("encode", "features", "prepare", "semantic_vae")))
    if params.schedule is not None:
        spread(PREEMPTED_EXIT_CODE)
    processes = Processes.join()
    find_path(params, folders, stage_dir("schedule"), processes)
    processes.leave()


if __name__ == "__main__":
    main()
