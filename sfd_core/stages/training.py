"""What the stages that train share: a training that MLflow follows and that another machine may continue."""

from sfd_core.host.processes import Processes
from sfd_core.storage import shared_training
from sfd_core.tracking.live import follow
from sfd_core.tracking.runs import RunSpec
from sfd_core.training.checkpoint import ResumeFolder
from sfd_core.training.loop import TrainingPlan, TrainingResult, run
from sfd_core.training.task import TrainingTask, WeightAverage


def run_training(
    task: TrainingTask,
    plan: TrainingPlan,
    resume: ResumeFolder,
    spec: RunSpec,
    processes: Processes,
    ema: WeightAverage | None = None,
) -> TrainingResult:
    """Train to the end; the first process shows the curve to MLflow and shares checkpoints through S3, where these are set up.

    Raises what `run` and `shared_training` raise.
    """
    if not processes.first:
        return run(task, plan, resume, ema)
    with shared_training(resume.path) as require_claim, follow(spec, resume.history_path, resume.key):
        return run(task, plan, resume, ema, require_claim=require_claim)
