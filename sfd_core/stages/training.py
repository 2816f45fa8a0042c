"""What the stages that train share: a training that MLflow follows and that another machine may continue, and its record."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from sfd_core.host.paths import write_json
from sfd_core.host.processes import Processes
from sfd_core.host.resume import mixed_codes
from sfd_core.storage import shared_training
from sfd_core.tracking.live import follow
from sfd_core.tracking.runs import RunSpec
from sfd_core.training.checkpoint import ResumeFolder
from sfd_core.training.history import write_empty_history
from sfd_core.training.loop import TrainingPlan, TrainingResult, run
from sfd_core.training.task import TrainingTask, WeightAverage


@dataclass(frozen=True)
class Origin:
    """How a network came about: by a training, or read from a file, which has neither metrics nor a resume folder."""

    metrics: Mapping[str, Any] = field(default_factory=dict)
    resume: ResumeFolder | None = None

    @classmethod
    def of(cls, resume: ResumeFolder, result: TrainingResult) -> Self:
        """Return the origin of a network that was trained."""
        return cls({"training": resume.training, **result.cost()}, resume)

    def write(self, folder: Path) -> None:
        """Write `history.csv`, without rows if nothing was trained; add the codes to `model.json` if more than one trained."""
        if self.resume is None:
            write_empty_history(folder / "history.csv")
            return
        shutil.copyfile(self.resume.history_path, folder / "history.csv")
        if codes := mixed_codes(self.resume.path):
            model = folder / "model.json"
            write_json(model, json.loads(model.read_text()) | codes)


def run_training(  # noqa: PLR0913 (what is trained, how, where, and who listens)
    task: TrainingTask,
    plan: TrainingPlan,
    resume: ResumeFolder,
    spec: RunSpec,
    processes: Processes,
    ema: WeightAverage | None = None,
    on_snapshot: Callable[[int, Mapping[str, Tensor]], None] = lambda *_: None,
) -> TrainingResult:
    """Train to the end; the first process sends the curve to MLflow and shares checkpoints through S3, where these are set up.

    Raises what `run`, `ResumeFolder.settle` and `shared_training` raise.
    """
    if not processes.first:
        return run(task, plan, resume, ema)
    with (
        shared_training(resume.path, resume.code, resume.settle, resume.drop_damaged) as require_claim,
        follow(spec, resume.history_path, resume.training),
    ):
        return run(task, plan, resume, ema, on_snapshot, require_claim)
