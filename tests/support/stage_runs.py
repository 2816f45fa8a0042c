"""Runs of one stage in a project's folder that can be killed at a chosen moment, and no second of them for imports."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from projects import Project

SERVER = Path(__file__).with_name("stage_server.py")
START_SECONDS = 120.0
RUN_SECONDS = 300.0
SECONDS_BETWEEN_LOOKS = 0.0005


@dataclass(frozen=True)
class Stage:
    """A stage as it is run by hand."""

    name: str
    arguments: tuple[str, ...] = ()
    times: frozenset[str] = frozenset()
    """Names of the values in its outputs that are times or rates."""

    @property
    def module(self) -> str:
        return f"sfd_core.stages.{self.name}"

    @property
    def out(self) -> Path:
        """The folder it writes, in the project."""
        return Path("outputs", self.name, *self.arguments[1:])

    @property
    def resume(self) -> Path:
        """The folder in which it keeps unfinished work, in the project."""
        return Path(".sfd", "resume", self.name)

    def run(self, project: Project) -> subprocess.CompletedProcess[str]:
        """Run it to its end with the command of `dvc.yaml`."""
        return project.run("python", "-m", self.module, *self.arguments)


@dataclass
class Run:
    """One process that runs a stage."""

    stage: Stage
    project: Project
    pid: int
    log: Path
    before: frozenset[tuple[Path, int, int]]
    """Files that were there when it began."""
    began: float = field(default_factory=time.perf_counter)
    _answers: IO[bytes] | None = None
    _code: int | None = None

    def wait(self, seconds: float = RUN_SECONDS) -> int | None:
        """Return the exit code, or None if the process still runs after `seconds`."""
        if self._code is None:
            assert self._answers is not None
            ready, _, _ = select.select([self._answers], [], [], max(0.0, seconds))
            self._code = int(self._answers.readline()) if ready else None
        return self._code

    def wait_for(self, happened: Callable[["Run"], bool]) -> bool:
        """Look again and again until `happened`; return False if the process ends before."""
        limit = time.perf_counter() + RUN_SECONDS
        while not happened(self):
            if self.wait(SECONDS_BETWEEN_LOOKS) is not None:
                return False
            assert time.perf_counter() < limit, f"{self.stage.name} did not come that far in {RUN_SECONDS:.0f} s"
        return True

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and all that it started."""
        os.killpg(self.pid, number)

    def kill(self) -> bool:
        """Kill the whole group; return whether that came before the end."""
        if self.wait(0) is not None:
            return False
        with suppress(ProcessLookupError):  # it may be over, but not yet told so
            self.send(signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def writes(self) -> bool:
        """Return whether a checkpoint, piece or batch is half-written by this process."""
        return bool({(path, number) for path, number, _ in half_written(self.project.path / self.stage.resume)} - self._known)

    def closes(self) -> bool:
        """Return whether this process has begun to write its output, or has written it."""
        return bool(closing(self.project, self.stage) - self.before)

    def done(self) -> bool:
        """Return whether all is written and cleared up, so that nothing but the end of the process is left."""
        resume = self.project.path / self.stage.resume
        return (
            (self.project.path / self.stage.out).exists() and self.closes() and not (resume.exists() and any(resume.iterdir()))
        )

    @property
    def _known(self) -> set[tuple[Path, int]]:
        return {(path, number) for path, number, _ in self.before}

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self.began

    @property
    def printed(self) -> str:
        """What it wrote to standard output and standard error."""
        return self.log.read_text()


class StageServer:
    """Starts runs of a stage in processes that have all imports behind them (see `stage_server.py`)."""

    def __init__(self, stage: Stage, project: Project) -> None:
        self.stage, self.project = stage, project
        self._run: Run | None = None
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER), stage.module],
            cwd=project.path,
            env=project.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        ready, _, _ = select.select([self._answers], [], [], START_SECONDS)
        if not ready or self._answers.readline() != b"ready\n":
            self.close()
            raise AssertionError(f"{stage.module} was not imported in {START_SECONDS:.0f} s")

    def start(self, killed_at: int | None = None) -> Run:
        """Start the stage anew; one run at a time. With `killed_at` it kills itself before that change of files."""
        log = self.project.path / f"{self.stage.name}.log"
        order = {"arguments": self.stage.arguments, "log": str(log), "killed_at": killed_at}
        before = half_written(self.project.path / self.stage.resume) | closing(self.project, self.stage)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        pid = int(self._answers.readline())
        self._run = Run(self.stage, self.project, pid, log, before, _answers=self._answers)
        return self._run

    @property
    def _answers(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server, and a run that it waits for."""
        if self._run is not None:
            self._run.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._answers.close()


def half_written(folder: Path) -> frozenset[tuple[Path, int, int]]:
    """Return what is half-written below `folder`: path, number and time of the last change."""
    return stated(partials(folder))


def closing(project: Project, stage: Stage) -> frozenset[tuple[Path, int, int]]:
    """Return a stage's output and what of it is half-written, likewise."""
    out = project.path / stage.out
    return stated([out, *out.parent.glob(f".{out.name}.*.partial")])


def stated(paths: Iterable[Path]) -> frozenset[tuple[Path, int, int]]:
    """Return those of `paths` that are there, with number and time of the last change."""
    found = set()
    for path in paths:
        with suppress(FileNotFoundError):
            status = path.stat()
            found.add((path, status.st_ino, status.st_ctime_ns))
    return frozenset(found)


def partials(folder: Path) -> list[Path]:
    """Return what is being written below `folder`, or was when its writer was killed."""
    return [Path(path, name) for path, folders, files in os.walk(folder) for name in (*folders, *files) if is_partial(name)]


def is_partial(name: str) -> bool:
    """Return whether a file or folder of this name is one that is being written."""
    return name.startswith(".") and name.endswith(".partial")


def leftovers(project: Project, stage: Stage) -> Sequence[Path]:
    """Return what a finished stage must not leave behind: half-written files, and work to be resumed."""
    resume = project.path / stage.resume
    kept = list(resume.iterdir()) if resume.exists() else []
    return [*kept, *partials(project.path / ".sfd"), *partials(project.path / "outputs")]
