"""The one training loop, for every network.

A task gives the loss of a step; all its randomness must follow from the step, so that a run killed at any moment and
started again ends in the same weights, bit for bit, on the same hardware.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn

from sfd_core.config import Optimisation
from sfd_core.errors import ConfigError, NumericsError, ResourceError
from sfd_core.seeding import derive_seed
from sfd_core.training.checkpoint import ResumeFolder, Snapshot
from sfd_core.training.determinism import reproducible, seed_everything
from sfd_core.training.history import History, Record
from sfd_core.training.optim import build_optimizer, learning_rate_at
from sfd_core.training.progress import Progress
from sfd_core.training.task import TrainingTask, WeightAverage

SKIPPED_IN_A_ROW_LIMIT = 10


@dataclass(frozen=True)
class TrainingPlan:
    """How long, how fast, and what is kept."""

    name: str
    """What the progress display calls it."""
    optimisation: Optimisation
    learning_rate: float
    snapshot_steps: tuple[int, ...] = ()
    """Numbers of done steps at which weights are kept."""
    log_every: int | None = None
    """Steps between rows of the curve; None makes about a hundred rows."""

    @property
    def interval(self) -> int:
        """Steps between rows of the curve."""
        return self.log_every or max(1, self.optimisation.steps // 100)


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training took."""

    steps: int
    images_seen: int
    seconds: float
    """Seconds of pure training, over all resumes."""
    images_per_second: float
    skipped_steps: int
    """Steps without an update because loss or gradient was not finite."""
    snapshots: tuple[Snapshot, ...]


@dataclass
class _Position:
    """Where the training stands: everything besides tensors that a resumed run needs."""

    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Of loss terms and `gradient_norm` over the finite steps since the last row."""
    summed: int = 0
    row_step: int = 0
    row_seconds: float = 0.0


def training_device() -> torch.device:
    """Return the device that training runs on: a GPU where there is one, unless ACCELERATE_USE_CPU is set."""
    return torch.device(PartialState().device)


def run(
    task: TrainingTask,
    plan: TrainingPlan,
    resume: ResumeFolder,
    ema: WeightAverage | None = None,
    report: Callable[[Record], None] | None = None,
    on_snapshot: Callable[[int, Mapping[str, Tensor], float], None] | None = None,
) -> TrainingResult:
    """Train to the end, from where an earlier, killed run stood.

    The curve is in `resume.history_path` and snapshots are in the result; both lie in the resume folder, to be copied
    into the stage's output before `resume.delete()`. `ema` must already lie on `training_device()`. `on_snapshot`
    gets (step, averaged weights if there is an `ema`, else the model's, seconds); it may hear of a step twice if a kill
    falls between a snapshot and the next checkpoint, with equal weights.

    Raises `NumericsError` after ten steps in a row without a finite loss and gradient, and `ResourceError` if another
    process is at the same training.
    """
    with resume.locked(), reproducible(training_device()):
        training = _Run(task, plan, resume, ema, report, on_snapshot)
        try:
            return training.finish()
        finally:
            training.history.close()


class _Run:
    def __init__(
        self,
        task: TrainingTask,
        plan: TrainingPlan,
        resume: ResumeFolder,
        ema: WeightAverage | None,
        report: Callable[[Record], None] | None,
        on_snapshot: Callable[[int, Mapping[str, Tensor], float], None] | None,
    ) -> None:
        self.task, self.plan, self.resume, self.ema = task, plan, resume, ema
        self.report, self.on_snapshot = report, on_snapshot
        self.optimisation = plan.optimisation
        AcceleratorState._reset_state()  # a process may train several networks, each in its own precision
        self.accelerator = Accelerator(mixed_precision="bf16" if self.optimisation.precision == "bfloat16" else "no")
        if self.accelerator.num_processes > 1:
            raise ConfigError(
                f"{plan.name}: training was launched in {self.accelerator.num_processes} processes, but it runs in one; "
                "start it without a launcher"
            )
        self.model = task.model.to(self.accelerator.device).train()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(self.parameters, plan.learning_rate, self.optimisation)
        self.history = History(resume.history_path)
        self.at = _Position()

    def finish(self) -> TrainingResult:
        """Restore, do the steps that are left, and return what the training took."""
        resumed = self._restore()
        with Progress(self.plan.name, self.optimisation.steps, self.at.step) as self.progress:
            if resumed:
                self.progress.tell(f"resumed after step {self.at.step} of {self.optimisation.steps}")
            self._began = time.perf_counter()
            for step in range(self.at.step, self.optimisation.steps):
                self._update(step)
                self.at.step = step + 1
                self._keep()
        images = self.at.step * self.optimisation.batch_size
        rate = images / max(self.at.seconds, 1e-9)
        return TrainingResult(self.at.step, images, self.at.seconds, rate, self.at.skipped, self.resume.snapshots())

    def _update(self, step: int) -> None:
        seed_everything(derive_seed(self.optimisation.seed, "step", step))
        rate = learning_rate_at(step, self.plan.learning_rate, self.optimisation)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with self.accelerator.autocast():
            terms = self.task.loss(step)
        self.accelerator.backward(terms["loss"])
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        # one transfer from the device for all numbers of the step
        *values, norm_value = torch.stack([*(term.detach().float() for term in terms.values()), norm.float()]).tolist()
        if not (math.isfinite(norm_value) and all(map(math.isfinite, values))):
            self._skip(step)
            return
        if 0 < self.optimisation.clip_norm < norm_value:
            torch._foreach_mul_(gradients, self.optimisation.clip_norm / norm_value)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        self.at.skipped_in_a_row = 0
        self.at.summed += 1
        for name, value in zip([*terms, "gradient_norm"], [*values, norm_value], strict=True):
            self.at.sums[name] = self.at.sums.get(name, 0.0) + value

    def _skip(self, step: int) -> None:
        self.at.skipped += 1
        self.at.skipped_in_a_row += 1
        self.progress.tell(f"step {step + 1} skipped: loss or gradient is not finite ({self.at.skipped} skipped so far)")
        if self.at.skipped_in_a_row >= SKIPPED_IN_A_ROW_LIMIT:
            raise NumericsError(
                f"{self.plan.name}: loss or gradient was not finite in {SKIPPED_IN_A_ROW_LIMIT} steps in a row, the last one "
                f"step {step + 1}; lower learning_rate {self.plan.learning_rate}, warm up longer, or set clip_norm"
            )

    def _keep(self) -> None:
        """Log, snapshot and checkpoint what is due at this step; the clock stands still meanwhile."""
        step, last = self.at.step, self.at.step == self.optimisation.steps
        log = step % self.plan.interval == 0 or last
        snapshot = step in self.plan.snapshot_steps
        checkpoint = step % self.optimisation.checkpoint_every == 0 or last
        if not (log or snapshot or checkpoint):
            return
        self.at.seconds += time.perf_counter() - self._began
        try:
            self._write(log, snapshot, checkpoint)
        except OSError as error:
            raise ResourceError(
                f"{self.plan.name}: step {step} cannot be written under {self.resume.path} ({error}); free space there and "
                "start again: the training continues from its last checkpoint"
            ) from error
        self._began = time.perf_counter()

    def _write(self, log: bool, snapshot: bool, checkpoint: bool) -> None:
        if log:
            self._log()
        if snapshot:
            self._snapshot()
        if checkpoint:
            self.history.sync()
            self.resume.save(self.at.step, self._state())

    def _log(self) -> None:
        at = self.at
        if at.summed == 0:
            return
        means = {name: total / at.summed for name, total in at.sums.items()}
        record = Record(
            step=at.step,
            images_seen=at.step * self.optimisation.batch_size,
            seconds=at.seconds,
            gradient_norm=means.pop("gradient_norm"),
            terms=means,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            images_per_second=(at.step - at.row_step) * self.optimisation.batch_size / max(at.seconds - at.row_seconds, 1e-9),
        )
        at.sums, at.summed, at.row_step, at.row_seconds = {}, 0, at.step, at.seconds
        self.history.append(record)
        self.progress.show(at.step, record.terms["loss"], record.images_per_second)
        if self.report is not None:
            self.report(record)

    def _snapshot(self) -> None:
        weights = self.model.state_dict() if self.ema is None else self.ema.weights()
        images = self.at.step * self.optimisation.batch_size
        self.resume.save_snapshot(self.at.step, images, self.at.seconds, weights)
        if self.on_snapshot is not None:
            self.on_snapshot(self.at.step, weights, self.at.seconds)

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else dict(self.ema.state_dict()),
            "position": asdict(self.at),
        }

    def _restore(self) -> bool:
        loaded = self.resume.load()
        if loaded is not None:
            _, state = loaded
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self.at = _Position(**state["position"])
        self.history.truncate(self.at.step)
        self.resume.forget_beyond(self.at.step)
        return loaded is not None
