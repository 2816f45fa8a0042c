"""The one door to other programs: DVC and `sfd` run here, each under a supervisor that ends it for sure."""

import configparser
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sfd_core.host import supervisor
from sfd_core.host.errors import DataError
from sfd_core.host.paths import STATE

TAIL_LINES = 25
_POLL_SECONDS = 0.1
_PULL_RUN_CACHE = "from dvc.repo import Repo; Repo().stage_cache.pull(None)"
"""`dvc fetch --run-cache` also asks for bytes of the current lock, which nobody may ever have pushed."""
_END_SECONDS = supervisor.GRACE_SECONDS + 10


class ProgramError(DataError):
    """A program ended with another code than 0; the message ends with what it said last."""


@dataclass(frozen=True)
class Place:
    """Where programs run, and what holds the machine for them."""

    folder: Path
    log: Path
    """What they print is appended here."""
    environment: Mapping[str, str]
    held: Sequence[int] = ()
    """Descriptors of locks that stay locked until the last process of a program is gone."""
    told: Callable[[str], None] = field(default=lambda _: None)
    """Is given every line they print."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Once set, no program starts and those that run in other threads end."""

    def run(self, *command: str) -> str:
        """Run a command to its end and return what it printed; whatever ends this call ends all its processes.

        Raises `ProgramError`.
        """
        self._require_going(command)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        start = self.log.stat().st_size
        with self._started(command) as running, self.log.open(errors="replace") as output:
            output.seek(start)
            while running.poll() is None:
                self._require_going(command)
                self._tell(output)
                time.sleep(_POLL_SECONDS)
            self._tell(output)
        printed = self.log.read_bytes()[start:].decode(errors="replace")
        if running.returncode:
            raise ProgramError(f"`{' '.join(_shown(command))}` ended with code {running.returncode}:\n{tail(printed)}")
        return printed

    def dvc(self, *arguments: str) -> str:
        """Run DVC; waits while another process has the folder's lock."""
        return self.run(sys.executable, "-m", "dvc", "--wait-for-lock", *arguments)

    def pull_run_cache(self) -> None:
        """Learn from the remote what was computed anywhere, without its bytes."""
        self.run(sys.executable, "-c", _PULL_RUN_CACHE)

    def sfd(self, *arguments: str) -> str:
        """Run the command `sfd` of the folder's own code."""
        return self.run(sys.executable, "-m", "sfd_core.cli", *arguments)

    def _require_going(self, command: Sequence[str]) -> None:
        if self.stop.is_set():
            raise ProgramError(f"`{' '.join(_shown(command))}` was ended with the flow that it belongs to")

    def _tell(self, output: Iterator[str]) -> None:
        for line in output:
            self.told(line.rstrip())

    @contextmanager
    def _started(self, command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
        running = subprocess.Popen(
            [sys.executable, "-P", str(Path(supervisor.__file__)), str(os.getpid()), str(self.log.absolute()), *command],
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
                running.wait(_END_SECONDS)


def environment(project: Path) -> dict[str, str]:
    """Return the environment of programs: this one's, without Prefect's, with this Python first and a place for MLflow runs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    kept.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{project.resolve() / STATE / 'mlflow.db'}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1"}


def remote_of(project: Path) -> str | None:
    """Return the name of the default remote, of the project or of the user; None where bytes stay on this machine."""
    return _config(project).get("core", "remote", fallback=None)


def write_local_config(project: Path, folder: Path) -> None:
    """Let the worktree `folder` share the cache and the remotes of `project`, by links where the disk has them."""
    config = _config(project)
    for section in ("cache", "core"):
        if not config.has_section(section):
            config.add_section(section)
    cache = Path(config.get("cache", "dir", fallback="cache"))
    config.set("cache", "dir", str((project / ".dvc" / cache).resolve()))
    config.set("cache", "type", config.get("cache", "type", fallback="reflink,hardlink,copy"))
    config.set("core", "autostage", "false")
    for name in config.sections():
        address = config.get(name, "url", fallback="")
        if name.startswith("'remote ") and address and "://" not in address:
            config.set(name, "url", str((project / ".dvc" / address).resolve()))
    path = folder / ".dvc" / "config.local"
    path.touch(mode=0o600)  # it may hold a remote's credentials
    with path.open("w") as file:
        config.write(file)


def stages_run(printed: str) -> list[str]:
    """Return the stages that an output of `dvc repro` says were run, not restored."""
    marks = [line for line in printed.splitlines() if line.startswith("Running stage '")]
    return [line.split("'")[1] for line in marks]


def tail(printed: str) -> str:
    """Return the last lines of what a program printed."""
    return "\n".join([line for line in printed.splitlines() if line.strip()][-TAIL_LINES:])


def _config(project: Path) -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None)
    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "dvc" / "config"
    config.read([own, project / ".dvc" / "config", project / ".dvc" / "config.local"])
    return config


def _shown(command: Sequence[str]) -> Sequence[str]:
    return [*command[2:]] if command[:2] == (sys.executable, "-m") else command
