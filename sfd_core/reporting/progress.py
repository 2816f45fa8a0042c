"""What is in work or finished in a clone: stages of the project, of its experiments and of the points of its sweeps."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfd_core.experiment.numbers import frechet_distances
from sfd_core.experiment.params import load_params
from sfd_core.host.errors import SFDError
from sfd_core.host.locks import is_held
from sfd_core.host.paths import OUTPUTS, STATE, read_json
from sfd_core.host.progress import format_rate
from sfd_core.host.resume import LOCK, command_of
from sfd_core.reporting import text
from sfd_core.tracking.runs import is_of, training_steps
from sfd_core.training.history import read_history
from sfd_core.workspace import git
from sfd_core.workspace.dvc import running_stages
from sfd_core.workspace.places import EXPERIMENTS

RUNNING, STOPPED, FINISHED = "running", "stopped", "finished"
RECENT_ROWS = 10
"""The rate of a training is that of so many rows at the end of its curve."""


@dataclass(frozen=True)
class Work:
    """One stage, with its variant, in work or finished; what is not known is empty."""

    stage: str
    state: str
    """`running`; `stopped`: resumes when it is started again; `finished`."""
    where: str
    """Its folder, or the Git ref of a finished point."""
    step: int | None = None
    steps: int | None = None
    """Of the present parameters; an older training may have taken more."""
    rate: float | None = None
    """Steps a second."""
    distance: str = ""
    """Newest leading distance, with its name."""

    @property
    def row(self) -> tuple[str, ...]:
        """The cells of its row, as `COLUMNS`."""
        done = "" if self.step is None else f"{self.step:,}" + (f" of {self.steps:,}" if (self.steps or 0) >= self.step else "")
        rate = f"{format_rate(self.rate)} steps/s" if self.rate else ""
        left = ""
        if self.state == RUNNING and self.rate and self.steps is not None and self.step is not None:
            left = text.duration(max(0, self.steps - self.step) / self.rate)
        return self.stage, self.state, done, rate, left, self.distance, self.where


COLUMNS = ("stage", "state", "step", "rate", "time left", "distance", "where")


def read_work(project: Path = Path()) -> list[Work]:
    """Return everything in work, then what a stop interrupted, then what is finished."""
    places = [project, *sorted((project / EXPERIMENTS).glob("*/")), *sorted((project / git.POINTS).glob("*/"))]
    found = [work for place in places for work in [*_unfinished(place), *_finished(place)]]
    found += _finished_points(project)
    return sorted(found, key=lambda work: (RUNNING, STOPPED, FINISHED).index(work.state))


def _unfinished(place: Path) -> Iterator[Work]:
    """Yield what runs, and what a stop interrupted. A stage that runs holds the newest folder of its name, or none yet."""
    resumable = place / STATE / "resume"
    totals, running = _steps_of_stages(place), running_stages(place)
    for lock in sorted(resumable.glob(f"*/[!.]*/**/{LOCK}"), key=lambda lock: -lock.stat().st_mtime):
        folder = lock.parent
        stage, command = folder.relative_to(resumable).parts[0], command_of(folder)
        name = f"{stage}@{command[command.index('--variant') + 1]}" if "--variant" in command[:-1] else stage
        state = RUNNING if is_held(lock) or name in running else STOPPED
        running = [other for other in running if other != name]
        step, rate = _pace(folder)
        yield Work(name, state, str(folder), step, totals.get(stage), rate)
    yield from (Work(name, RUNNING, str(place)) for name in running)


def _steps_of_stages(place: Path) -> dict[str, int]:
    """Return how many steps each stage that trains is to take, as far as the parameters say."""
    with suppress(SFDError):
        params = load_params(place / "params.yaml")
        found = {stage: training_steps(getattr(params, stage)) for stage in ("texture_vae", "semantic_vae", "train")}
        return {stage: steps for stage, steps in found.items() if steps is not None}
    return {}


def _pace(folder: Path) -> tuple[int | None, float | None]:
    """Return the last step that a training's curve or checkpoints tell of, and the steps a second at the end of either."""
    rows: list[tuple[int, float]] = []
    saved: list[tuple[int, float]] = []
    with suppress(SFDError, KeyError):
        rows = [(int(row["step"]), row["seconds"]) for row in read_history(folder / "history.csv")[-RECENT_ROWS:]]
    with suppress(OSError):  # a checkpoint that was just deleted
        saved = [(int(path.name.removeprefix("step-")), path.stat().st_mtime) for path in sorted(folder.glob("step-*"))]
    times = rows if len(rows) > 1 else saved
    passed = times[-1][1] - times[0][1] if times else 0
    rate = (times[-1][0] - times[0][0]) / passed if passed > 0 else None
    return max((step for step, _ in [*rows, *saved]), default=None), rate


def _finished(place: Path) -> Iterator[Work]:
    for folder in [*(place / OUTPUTS).glob("*_vae"), *sorted((place / OUTPUTS / "train").glob("*/"))]:
        step, _ = _pace(folder)
        if step is None:
            continue
        of_variant, evaluate = folder.parent.name == "train", place / OUTPUTS / "evaluate" / folder.name
        numbers = read_json(evaluate / "metrics.json") if of_variant and is_of(evaluate, folder) else {}
        stage = f"train@{folder.name}" if of_variant else folder.name
        yield _trained(stage, {"steps": step, **read_json(folder / "metrics.json")}, numbers, str(folder))


def _finished_points(project: Path) -> Iterator[Work]:
    if (project / ".git").exists():
        for name, record in git.read_records(project, "").items():
            sweep, _, point = name.partition("/")
            if sweep != "points":
                yield _trained(f"train@{point}", record.get("training", {}), record.get("numbers", {}), f"{git.REFS}/{name}")


def _trained(stage: str, metrics: Mapping[str, Any], numbers: Mapping[str, Any], where: str) -> Work:
    steps, seconds = metrics.get("steps"), metrics.get("seconds")
    leading = next(iter(frechet_distances(numbers)), None)
    distance = "" if leading is None else f"{text.number(numbers[leading.name])} {leading.name}"
    return Work(stage, FINISHED, where, steps, steps, steps / seconds if steps and seconds else None, distance)
