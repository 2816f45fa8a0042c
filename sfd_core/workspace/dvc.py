"""The one door to DVC, and to the command `sfd` of another folder: each runs under a supervisor that surely ends it."""

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Self, TextIO

import psutil
from configobj import ConfigObj

from sfd_core.experiment.values import parse_yaml, read_utf8
from sfd_core.host import supervisor
from sfd_core.host.addresses import public
from sfd_core.host.errors import BUSY_EXIT_CODE, BusyError, DataError
from sfd_core.host.machine import Slot, cores
from sfd_core.host.paths import OUTPUTS, STATE, sqlite_address
from sfd_core.host.settings import Settings
from sfd_core.workspace import shared_cache

LOCK = "dvc.lock"
LOGS = STATE / "logs"
OF_VARIANTS = ("train", "evaluate", "studies")
"""Stages that run once a variant."""
TAIL_LINES = 25
_DVC = (sys.executable, "-P", str(Path(shared_cache.__file__)))
_POLL_SECONDS = 0.1
_ASK_REMOTE = (
    "from dvc.repo import Repo; odb = Repo().cloud.get_remote_odb(); list(odb.fs.find(odb.fs.join(odb.path, 'runs', '00')))"
)
"""No DVC command asks the remote for nothing but an answer."""
_BUSY = f"exited with {BUSY_EXIT_CODE}"
"""How DVC reports the exit code of a stage that another process is running."""
_END_SECONDS = 10
"""Time of a supervisor to end, beyond that of its command."""


class ProgramError(DataError):
    """A program ended with another code than 0; the message ends with its last lines of output."""


@dataclass(frozen=True)
class Place:
    """A folder in which programs run, their environment and their log."""

    folder: Path
    environment: Mapping[str, str]
    log: Path | None = None
    """Their output is appended here; None shows it where this process writes its own."""
    held: Sequence[int] = ()
    """Descriptors of locks that stay locked until the last process of a program has ended."""
    report: Callable[[str], None] = field(default=lambda _: None)
    """Receives every line of the log as it comes."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Once set, no program starts, and programs that other threads run are ended."""

    @classmethod
    def of(cls, project: Path, log: str, report: Callable[[str], None]) -> Self:
        """Return the folder of a project, with `log` as the name of the log."""
        return cls(project, environment(project), project / LOGS / f"{log}.log", report=report)

    def on(self, slot: Slot) -> Self:
        """Return this place with the GPUs of a slot, which the programs hold as long as they run."""
        return replace(self, environment={**self.environment, **slot.environment}, held=(*self.held, slot.held))

    @property
    def has_remote(self) -> bool:
        """Whether the folder has a default DVC remote."""
        return remote_of(self.folder) is not None

    def run(self, *command: str) -> str:
        """Run a command to its end and return its output, "" if it has no log; all its processes end with this call.

        Raises `ProgramError`.
        """
        printed: list[str] = []
        with self._log() as output, self._started(command) as running:
            while running.poll() is None:
                self.require_running(_shown(command))
                printed += self._report(output)
                time.sleep(_POLL_SECONDS)
            printed += self._report(output)
        if running.returncode:
            raise ProgramError(f"`{_shown(command)}` ended with code {running.returncode}:\n{tail(''.join(printed))}")
        return "".join(printed)

    def dvc(self, *arguments: str, then: Sequence[str] = ()) -> str:
        """Run DVC, and in the same process a second command `then`; waits while another process has the folder's lock.

        Raises `BusyError` if another process is running the same stage.
        """
        try:
            return self.run(
                *_DVC, "--wait-for-lock", *arguments, *([shared_cache.THEN, "--wait-for-lock", *then] if then else [])
            )
        except ProgramError as error:
            if _BUSY in str(error):
                raise BusyError(str(error)) from error
            raise

    def restore(self, *targets: str) -> None:
        """Bring back what dvc.lock records, from DVC's cache, or else from the remote. Raises `ProgramError` if both lack it.

        `dvc pull` asks an S3 remote also for what the cache has, and fails while it does not answer.
        """
        try:
            self.dvc("checkout", *(["--quiet"] if self.has_remote else []), *targets)
        except ProgramError:
            if not self.has_remote:
                raise
            self.dvc("pull", *targets)

    def reproduce(self, at_once: int) -> None:
        """Bring every stage up to date, up to `at_once` of them at a time, each with an equal share of the cores.

        A stage that runs alone has no more: the number of threads rounds results, and what runs beside a stage is chance.
        Of the stages that can run, the one that most others wait for is the first, of equals the first in dvc.yaml.
        After a failure no further stage starts, and those that run are ended; they resume when they are started again.
        """
        if self._is_up_to_date():
            return
        share = {"OMP_NUM_THREADS": str(max(1, cores() // at_once))}
        place = replace(self, environment={**self.environment, **share})
        # what DVC prints is known only where it goes to a log
        graph = replace(self, log=self.folder / LOGS / "graph.log", report=lambda _: None).stage_graph()
        waited_for = Counter(before for stages in graph.values() for before in stages)
        order = TopologicalSorter(graph)
        order.prepare()
        ready: list[str] = []
        with ThreadPoolExecutor(at_once) as workers:
            running: dict[Future[str], str] = {}
            try:
                while order.is_active():
                    ready = sorted([*ready, *order.get_ready()], key=lambda name: (-waited_for[name], list(graph).index(name)))
                    while ready and len(running) < at_once:
                        name = ready.pop(0)
                        running[workers.submit(place.dvc, "repro", "--single-item", name)] = name
                    for ended in wait(running, return_when=FIRST_COMPLETED).done:
                        ended.result()
                        order.done(running.pop(ended))
            except BaseException:
                self.stop.set()
                workers.shutdown(cancel_futures=True)
                raise

    def _is_up_to_date(self) -> bool:
        try:
            self.dvc("status", "--quiet")
        except ProgramError:
            return False
        return True

    def require_remote(self) -> None:
        """Raise `ProgramError` unless the remote answers and lets this machine in."""
        self.run(sys.executable, "-c", _ASK_REMOTE)

    def stage_graph(self) -> dict[str, set[str]]:
        """Return, for every stage with its variants, the stages whose outputs it reads; this place has a log."""
        graph: dict[str, set[str]] = {}
        for line in self.dvc("dag", "--dot").splitlines():
            match re.findall(r'"(.+?)"', line if line.startswith('"') else ""):
                case [stage]:
                    graph[stage] = set()
                case [before, stage]:
                    graph[stage].add(before)
        return graph

    def sfd(self, *arguments: str) -> str:
        """Run the command `sfd` of the folder's own code."""
        return self.run(sys.executable, "-m", "sfd_core.cli", *arguments)

    def require_running(self, what: str) -> None:
        """Raise `ProgramError` once `stop` is set; `what` was to run here."""
        if self.stop.is_set():
            raise ProgramError(f"`{what}` was ended with the flow that it belongs to")

    def _log(self) -> TextIO:
        """Open the log where the next program's output begins."""
        if self.log is None:
            return io.StringIO()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        output = self.log.open("a+", errors="replace")
        output.seek(0, os.SEEK_END)
        return output

    def _report(self, output: TextIO) -> list[str]:
        lines = list(output)
        for line in lines:
            self.report(line.rstrip())
        return lines

    @contextmanager
    def _started(self, command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
        self.require_running(_shown(command))
        log, grace = "-" if self.log is None else str(self.log.absolute()), Settings.read().grace_seconds
        running = subprocess.Popen(
            [sys.executable, "-P", str(Path(supervisor.__file__)), str(os.getpid()), log, str(grace), *command],
            cwd=self.folder,
            env=dict(self.environment),
            pass_fds=self.held,
            start_new_session=True,
        )
        try:
            yield running
        finally:
            if running.poll() is None:
                running.terminate()
                running.wait(grace + _END_SECONDS)


def environment(project: Path) -> dict[str, str]:
    """Return the environment of programs: this one's, without Prefect's, with this Python first and a place for MLflow runs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    store = kept.get("MLFLOW_TRACKING_URI") or sqlite_address(STATE / "mlflow.db")
    # a relative file would lie in the folder of an experiment, or of a point, which is deleted
    kept["MLFLOW_TRACKING_URI"] = re.sub("^sqlite:///(?!/)", lambda _: f"{sqlite_address(project.resolve())}/", store)
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1"}


def locked_stages(folder: Path) -> dict[str, Any]:
    """Return what dvc.lock records of each stage; empty without the file. Raises `ConfigError` if it is no YAML."""
    lock = folder / LOCK
    return dict(parse_yaml(read_utf8(lock), str(lock)).get("stages") or {}) if lock.is_file() else {}


def remote_of(project: Path) -> str | None:
    """Return the name of the default remote, of project, user or machine; None where bytes stay on this machine."""
    name: str | None = _config(project)["core"].get("remote")
    return name and name.lower()


def remote_object(project: Path, digest: str) -> str:
    """Return where the default remote keeps the file, or the listing of the folder, of a DVC hash; "" without a remote."""
    name = remote_of(project)
    if name is None:
        return ""
    url = public(str(_config(project)["remote"].get(name, {}).get("url", "")))
    return f"{url.rstrip('/')}/files/md5/{digest[:2]}/{digest[2:]}"


def write_local_config(project: Path, folder: Path, scm: bool = True) -> None:
    """Let `folder` share the cache and the remotes of `project`, by links where the disk has them; `scm`: it is a worktree."""
    from dvc.config import _pack_named  # noqa: PLC0415 - only sweeps and experiments need it

    config = _config(project)
    config["cache"] = {"dir": str((project / ".dvc" / "cache").resolve()), "type": "reflink,hardlink,copy"} | config["cache"]
    config["core"] |= {"autostage": "false"} | ({} if scm else {"no_scm": "true"})
    path = folder / ".dvc" / "config.local"
    path.parent.mkdir(exist_ok=True)
    path.touch(mode=0o600)  # it may hold a remote's credentials
    path.write_text("\n".join(ConfigObj(_pack_named(config)).write()) + "\n")  # DVC itself writes ASCII alone


def stages_run(printed: str) -> list[str]:
    """Return the stages that an output of `dvc repro` says were run, not restored; `inputs` only looks and does not count."""
    marks = [line for line in printed.splitlines() if line.startswith("Running stage '")]
    return [name for line in marks if (name := line.split("'")[1]) != "inputs"]


def running_stages(folder: Path) -> list[str]:
    """Return the stages that living DVC processes run in a folder now, such as `evaluate@sfd`."""
    try:
        written = json.loads((folder / ".dvc" / "tmp" / "rwlock").read_text())["write"]
    except (OSError, ValueError, KeyError):
        return []
    outs = [Path(path).relative_to(folder.resolve()) for path, by in written.items() if psutil.pid_exists(by["pid"])]
    parts = [out.parts[1:] if out.is_relative_to(OUTPUTS) else out.parts for out in outs]
    return list(dict.fromkeys("@".join(part[:2]) if part[0] in OF_VARIANTS else part[0] for part in parts))


def tail(printed: str) -> str:
    """Return the last lines of what a program printed."""
    return "\n".join([line for line in printed.splitlines() if line.strip()][-TAIL_LINES:])


def _config(project: Path) -> dict[str, Any]:
    """Return DVC's configuration of the machine, the user and the project, a dictionary of sections with absolute paths."""
    from dvc.config import Config  # noqa: PLC0415 - only sweeps and experiments need it

    return dict(Config(str(project / ".dvc"), validate=False))


def _shown(command: Sequence[str]) -> str:
    if command[: len(_DVC)] == _DVC:
        return " ".join(["dvc", *command[len(_DVC) :]])
    return " ".join(command[2:] if command[:2] == (sys.executable, "-m") else command)
