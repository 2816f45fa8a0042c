"""The one training loop, for every network, in one process or many.

A task gives the batch and the loss of a step; all their randomness follows from the step, so that a run killed at any moment
and started again ends in the same weights, bit for bit, on the same hardware and number of processes. The host never waits
for the device in a step: whether loss and gradient are finite is decided there, and the host hears of it a little later.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from sfd_core.experiment.params import EngineParams, Optimisation
from sfd_core.host.errors import ConfigError, DataError, Preempted, ResourceError
from sfd_core.host.seeding import derive_seed
from sfd_core.training.checkpoint import ResumeFolder, Snapshot, State
from sfd_core.training.determinism import reproducible, seed_everything
from sfd_core.training.guards import Guard, Incidents, StepNumbers
from sfd_core.training.history import History, Record
from sfd_core.training.optim import WeightOptimizer, learning_rate_at
from sfd_core.training.parallel import Parallel, training_device, whole
from sfd_core.training.prefetch import Batch, Prefetcher
from sfd_core.training.progress import Progress
from sfd_core.training.task import TrainingTask, WeightAverage

PLAIN_ENGINE = EngineParams(
    sharding="none",
    micro_batch=None,
    activation_checkpointing=False,
    compile=False,
    checkpoint_seconds=60.0,
    keep_last=2,
    keep_every=None,
    milestones=[],
)
"""How a training is computed where nothing else is asked for."""


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
    engine: EngineParams = PLAIN_ENGINE

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
    spikes: int
    """Steps whose loss was far above its neighbours'."""
    data_wait: float
    """Share of the time that was spent waiting for data."""
    snapshots: tuple[Snapshot, ...]

    def cost(self) -> dict[str, float]:
        """Return what the training took, as the metrics of its stage say it."""
        return {"images_seen": self.images_seen, "seconds": self.seconds, "images_per_second": self.images_per_second}


@dataclass
class _Position:
    """Where the training stands: everything besides tensors that a resumed run needs."""

    step: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    """Of loss terms and `gradient_norm` over the finite steps since the last row."""
    summed: int = 0
    row_step: int = 0
    row_seconds: float = 0.0
    guard: dict[str, Any] = field(default_factory=dict)


def run(
    task: TrainingTask,
    plan: TrainingPlan,
    resume: ResumeFolder,
    ema: WeightAverage | None = None,
    on_snapshot: Callable[[int, Mapping[str, Tensor]], None] = lambda *_: None,
    require_claim: Callable[[], None] = lambda: None,
) -> TrainingResult:
    """Train to the end, from where an earlier, killed run stood; every process of a training calls it.

    The curve is in `resume.history_path`, what went wrong in `resume.incidents_path`, and snapshots are in the result; all lie
    in the resume folder, to be copied into the stage's output before `resume.finish`. `ema` must already lie on
    `training_device()`. `on_snapshot` gets (step, averaged weights if there is an `ema`, else the model's); it may
    hear of a step twice if a kill falls between a snapshot and the next checkpoint, with equal weights. `require_claim` is
    called before every checkpoint and may raise if this training is no longer ours. The first process alone writes and calls.

    Raises `NumericsError` after ten steps in a row without a finite loss and gradient, `ResourceError` if another
    process is at the same training, the disk is full or the folder was deleted, `DataError` if a part of the folder is missing,
    and `Preempted` once a checkpoint is written after SIGTERM.
    """
    with reproducible(training_device()):
        parallel = Parallel(plan.name, task, plan.optimisation, plan.engine)
        with resume.locked() if parallel.first else nullcontext():
            parallel.wait()
            training = _Run(task, plan, resume, ema, parallel)
            training.on_snapshot, training.require_claim = on_snapshot, require_claim
            try:
                return training.finish()
            finally:
                training.close()


class _Run:
    on_snapshot: Callable[[int, Mapping[str, Tensor]], None]
    require_claim: Callable[[], None]

    def __init__(
        self, task: TrainingTask, plan: TrainingPlan, resume: ResumeFolder, ema: WeightAverage | None, parallel: Parallel
    ) -> None:
        self.task, self.plan, self.resume, self.ema, self.parallel = task, plan, resume, ema, parallel
        self.optimisation, self.engine = plan.optimisation, plan.engine
        self.model = parallel.model
        self.named = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        self.parameters = list(self.named.values())
        if parallel.sharded and self.optimisation.optimizer == "muon":
            raise ConfigError(
                "optimizer is muon, which needs whole matrices; set engine.sharding to none, or optimizer to adamw"
            )
        self.optimizer = WeightOptimizer(self.named, plan.learning_rate, self.optimisation)
        if ema is not None and parallel.sharded:
            ema.restart(self.model)
        self.history = History(resume.history_path)
        self.guard = Guard(plan.name, plan.learning_rate, Incidents(resume.incidents_path) if parallel.first else None, task)
        self.numbers = StepNumbers(parallel.device)
        self.at = _Position()
        self.stop = self.stopping = self.requested = False
        self.writing: Future[None] | None = None
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def finish(self) -> TrainingResult:
        """Restore, do the steps that are left, and return what the training took."""
        resumed = self._restore()
        steps = self.optimisation.steps
        with (
            Progress(self.plan.name, steps, self.at.step, shown=self.parallel.first) as self.progress,
            Prefetcher.running(self._batches, self.at.step, steps, self.parallel.device) as self.batches,
            self._watching_signals(),
        ):
            if resumed:
                self.progress.log(f"resumed after step {self.at.step} of {steps}")
            self.guard.log = self.progress.log
            if self.at.step < steps:
                self.parallel.settle(self._batches(self.at.step))
            self._began = self._saved = time.perf_counter()
            for step in range(self.at.step, steps):
                self._update(step)
                self.at.step = step + 1
                self._keep()
        self._finish_writing()
        self.parallel.wait()
        images = self.at.step * self.optimisation.batch_size
        seconds = max(self.at.seconds, 1e-9)
        return TrainingResult(
            steps=self.at.step,
            images_seen=images,
            seconds=self.at.seconds,
            images_per_second=images / seconds,
            skipped_steps=self.guard.skipped,
            spikes=self.guard.spikes,
            data_wait=self.at.waited / seconds,
            snapshots=self.resume.snapshots(),
        )

    def close(self) -> None:
        """Let the thread that writes end, and close the curve."""
        self.writer.shutdown(wait=True)
        self.history.close()

    def _batches(self, step: int) -> list[Batch]:
        return [self.task.batch(step, part) for part in self.parallel.parts]

    def _update(self, step: int) -> None:
        rank = () if self.parallel.first else ("process", self.parallel.rank)
        seed_everything(derive_seed(self.optimisation.seed, "step", step, *rank))
        self.optimizer.learning_rate = learning_rate_at(step, self.plan.learning_rate, self.optimisation)
        self.optimizer.zero_grad()
        terms = self.parallel.backward(self.batches.next())
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = whole(nn.utils.get_total_norm(gradients)).float()
        requests = self._requests(norm.device)
        means = self.parallel.mean(torch.stack([*terms.values(), norm, *requests]))
        finite = means.isfinite().all()
        with self.parallel.mixed():
            if self.optimisation.clip_norm > 0:
                # a norm that is no number leaves gradients that no update uses
                factor = torch.where(norm > self.optimisation.clip_norm, self.optimisation.clip_norm / norm, 1.0)
                torch._foreach_mul_(gradients, factor)
            self.optimizer.step(finite)
            if self.ema is not None:
                self.ema.update(self.model)
        self.numbers.put(step, [*terms, "gradient_norm", "checkpoint", "stop"], means)
        for numbers in self.numbers.due():
            self._take_numbers(*numbers)

    def _requests(self, device: torch.device) -> list[Tensor]:
        """Return whether this process asks for a checkpoint, and for an end: all processes do either after the same step."""
        writes = self.parallel.writer is not None and (self.writing is None or self.writing.done())
        late = writes and time.perf_counter() - self._saved > self.engine.checkpoint_seconds
        # filled there: a copy from the host would wait for the device
        return [torch.full((), float(request), device=device) for request in (late or self.stop, self.stop)]

    def _take_numbers(self, step: int, values: dict[str, float]) -> None:
        self.requested |= values.pop("checkpoint") > 0
        self.stopping |= values.pop("stop") > 0
        if not self.guard.check(step, values):
            return
        self.at.summed += 1
        for name, value in values.items():
            self.at.sums[name] = self.at.sums.get(name, 0.0) + value

    def _keep(self) -> None:
        """Log, snapshot and checkpoint what is due at this step; the clock stands still meanwhile."""
        step, last = self.at.step, self.at.step == self.optimisation.steps
        log = step % self.plan.interval == 0 or last
        snapshot = step in self.plan.snapshot_steps
        checkpoint = (
            step % self.optimisation.checkpoint_every == 0 or last or self.engine.keeps(step) or self.requested or self.stopping
        )
        if not (log or snapshot or checkpoint):
            return
        for numbers in self.numbers.all():
            self._take_numbers(*numbers)
        checkpoint |= self.stopping  # on a GPU it may be heard of only now
        now = time.perf_counter()
        self.at.seconds += now - self._began
        self.at.waited += self.batches.waited
        self.batches.waited = 0.0
        try:
            self._write(log, snapshot, checkpoint)
        except OSError as error:
            raise self._cannot_write(step, error) from error
        self._began = time.perf_counter()
        if self.stopping and not last:
            self._finish_writing()
            self.parallel.wait()
            raise Preempted(
                f"{self.plan.name}: asked to stop; a checkpoint of step {step} is written, the same command goes on from it"
            )

    def _write(self, log: bool, snapshot: bool, checkpoint: bool) -> None:
        self.history.require_kept()
        if log:
            self._log()
        if snapshot:
            self._snapshot()
        if checkpoint:
            self._checkpoint()

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
            learning_rate=self.optimizer.learning_rate,
            images_per_second=(at.step - at.row_step) * self.optimisation.batch_size / max(at.seconds - at.row_seconds, 1e-9),
        )
        at.sums, at.summed, at.row_step, at.row_seconds = {}, 0, at.step, at.seconds
        if not self.parallel.first:
            return
        self.history.append(record)
        self.progress.show(at.step, record.terms["loss"], record.images_per_second)

    def _snapshot(self) -> None:
        weights = self.model.state_dict() if self.ema is None else self.ema.weights()
        weights = {name: whole(tensor) for name, tensor in weights.items()}
        if not self.parallel.first:
            return
        self.resume.save_snapshot(self.at.step, weights)
        self.on_snapshot(self.at.step, weights)

    def _checkpoint(self) -> None:
        """Copy the state and let a thread write it."""
        self._finish_writing()
        self.requested = False
        self._saved = time.perf_counter()
        if self.parallel.first:
            self.require_claim()
            self.history.sync()
        if self.parallel.writer is not None:
            self.at.guard = self.guard.state()
            state = State.copied(self._tensors(), asdict(self.at))
            self.writing = self.writer.submit(self._save, self.at.step, state, self.parallel.writer)

    def _save(self, step: int, state: State, writer: tuple[int, int]) -> None:
        try:
            self.resume.save(step, state, writer)
            if self.parallel.first:
                self.resume.prune(self.engine.keep_last, self.engine.keeps)
        except OSError as error:
            raise self._cannot_write(step, error) from error

    def _finish_writing(self) -> None:
        """Wait for the checkpoint that is being written; raises what writing it raised."""
        if self.writing is not None:
            self.writing.result()
            self.writing = None

    def _cannot_write(self, step: int, error: OSError) -> ResourceError:
        return ResourceError(
            f"{self.plan.name}: step {step} cannot be written under {self.resume.path} ({error}); free space there and "
            "start again: the training continues from the last checkpoint that is there"
        )

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in self.optimizer.tensors().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        return tensors

    def _restore(self) -> bool:
        step = self.parallel.from_first(self.resume.newest() if self.parallel.first else None)
        if step is not None:
            if self.parallel.first:
                self.resume.require_all(step, self.plan.snapshot_steps)
            tensors = self._tensors()
            try:
                self.at = _Position(**self.resume.read(step, tensors))
            except (KeyError, RuntimeError, TypeError) as error:
                raise DataError(
                    f"the checkpoint of step {step} in {self.resume.path} does not fit this code ({error}); "
                    f"continue it with the code that wrote it, or train anew: rm -r {self.resume.path}"
                ) from error
            if self.ema is not None:
                prefix = "ema."
                state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
                self.ema.load_state_dict(state)
            self.guard.restore(self.at.guard)
        if self.parallel.first:
            self.history.truncate(self.at.step)
            self.guard.forget_beyond(self.at.step)
            self.resume.forget_beyond(self.at.step)
        self.parallel.wait()
        return step is not None

    @contextmanager
    def _watching_signals(self) -> Iterator[None]:
        """Note that SIGTERM asks the training to stop; the step in progress is done first."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(_signal: int, _frame: FrameType | None) -> None:
            self.stop = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
