"""Starts the servers in order, starts again what dies, and stops everything in reverse order when asked.

It holds the lock of the laboratory's folder as long as it lives. Killed, it leaves the servers running, and the next one
takes over those that are still as they should be: a sweep of many hours does not end with it.
"""

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import FrameType

from infra.lab.credentials import MLFLOW_USER, Credentials, write_private
from infra.lab.databases import Databases, make_databases
from infra.lab.ports import choose_ports, require_free
from infra.lab.processes import MARK, Identity, end, ticks
from infra.lab.servers import Server, client_environment, inherited, servers, write_configuration
from infra.lab.settings import Settings
from infra.lab.state import Record, State, locked
from sfd_core.host.errors import ConfigError, ResourceError, SFDError

ENVIRONMENT_FILE = "env"
SECONDS_TO_START = 180.0
LONGEST_LOG = 10 * 2**20
"""Bytes; a longer one is set aside at the next start."""
FIRST_WAIT, LONGEST_WAIT, CALM = 1.0, 60.0, 300.0
"""Seconds: before a server that died is started again, at most, and how long it must live to begin anew."""
TAIL_LINES = 8


@dataclass
class Kept:
    """A server with its process."""

    server: Server
    record: Record
    popen: subprocess.Popen[bytes] | None
    """None for one that an earlier supervisor started."""
    since: float
    """Monotonic seconds."""
    wait: float = FIRST_WAIT
    due: float | None = None
    """When it is started again, if it died."""

    @property
    def runs(self) -> bool:
        """Whether its process is there."""
        return self.popen.poll() is None if self.popen is not None else self.record.process.runs


class Supervisor:
    """One laboratory from start to stop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.folder
        self._kept: list[Kept] = []
        self._asked_to_stop = False
        self._state = State(Identity.of(os.getpid()), settings.fingerprint, started=time.time())

    def run(self) -> None:
        """Start, watch until SIGTERM or SIGINT, stop. Raises `SFDError` if the laboratory cannot be started."""
        with locked(self.folder):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, self._ask_to_stop)
            earlier = State.read(self.folder)
            try:
                self._start(earlier)
                self._watch()
            except SFDError as error:
                self._stop("failed", str(error))
                raise
            except BaseException:
                self._stop("failed", "the supervisor broke down; see supervisor.log")
                raise
            self._stop("stopped", "")

    def _ask_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._asked_to_stop = True

    def _start(self, earlier: State | None) -> None:
        credentials = Credentials.of(self.folder, os.environ)
        databases = Databases.of(self.folder, self.settings.database_url)
        own = {} if self.settings.host != "127.0.0.1" else {"s3": self.settings.s3_port}
        kept_ports = earlier.ports if earlier else {}
        running = earlier.leftovers if earlier else []
        ports = choose_ports(kept_ports, own, any(record.name == "s3" for record in running))
        self._state = replace(self._state, ports=ports)
        if self.settings.database_url:
            make_databases(self.settings.database_url)
        write_configuration(self.settings, credentials, databases)
        wanted = servers(self.settings, credentials, databases, ports)
        self._adopt(wanted, running)
        self._save()
        present = {kept.server.name for kept in self._kept}
        for server in wanted:
            if server.name not in present:
                require_free(server)
        for wave in sorted({server.wave for server in wanted}):
            self._start_wave([server for server in wanted if server.wave == wave])
            if wave == 1:
                self._check_passwords(credentials)
                self._write_environment(credentials)
            if self._asked_to_stop:
                return
        self._save(phase="running")

    def _adopt(self, wanted: Sequence[Server], running: Sequence[Record]) -> None:
        """Keep what an earlier supervisor left running as it is wanted now; end the rest."""
        digests = {server.name: (server, _digest(server)) for server in wanted}
        for record in running:
            server, digest = digests.get(record.name, (None, ""))
            if server is not None and digest == record.digest and record.process.runs:
                self._kept.append(Kept(server, record, None, time.monotonic()))
                self._state = self._state.with_server(record)
                print(f"{record.name}: taken over, process {record.process.pid}", flush=True)
            else:
                end([record.process], record.patience)
                print(f"{record.name}: ended what was left of it, process {record.process.pid}", flush=True)

    def _start_wave(self, wave: Sequence[Server]) -> None:
        present = {kept.server.name for kept in self._kept}
        for server in wave:
            if server.name not in present:
                self._kept.append(self._spawn(server))
        for _ in ticks(SECONDS_TO_START):
            started = [kept for kept in self._kept if kept.server in wave]
            for kept in started:
                if not kept.runs:
                    raise ResourceError(f"{kept.server.name} ended as soon as it began:\n{self._tail(kept.server.name)}")
            waiting = [kept for kept in started if not is_healthy(kept.server.health)]
            if not waiting or self._asked_to_stop:
                return
        names = ", ".join(kept.server.name for kept in waiting)
        raise ResourceError(
            f"{names} did not answer within {SECONDS_TO_START:.0f} seconds; see {self._log(waiting[0].server.name)}"
        )

    def _spawn(self, server: Server, restarts: int = 0) -> Kept:
        log = self._log(server.name)
        log.parent.mkdir(exist_ok=True)
        if log.is_file() and log.stat().st_size > LONGEST_LOG:
            log.replace(log.with_suffix(".old.log"))
        mark = f"{self.folder}:{server.name}"
        with log.open("ab") as file:
            popen = subprocess.Popen(
                server.command,
                env={**inherited(), **server.environment, MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        record = Record(
            server.name, Identity.of(popen.pid, mark), _digest(server), server.address, server.health, server.patience,
            server.wave, restarts,
        )  # fmt: skip
        self._state = self._state.with_server(record)
        self._save()
        return Kept(server, record, popen, time.monotonic())

    def _watch(self) -> None:
        while not self._asked_to_stop:
            for index, kept in enumerate(self._kept):
                if not kept.runs:
                    self._kept[index] = self._revive(kept)
            time.sleep(0.5)

    def _revive(self, kept: Kept) -> Kept:
        """Start a server again that died, after a wait that doubles while it keeps dying."""
        now, name = time.monotonic(), kept.server.name
        if kept.due is None:
            wait = FIRST_WAIT if now - kept.since > CALM else kept.wait
            print(f"{name}: ended; started again in {wait:.0f} s; its log ends with\n{self._tail(name)}", flush=True)
            return replace(kept, due=now + wait, wait=wait)
        if now < kept.due:
            return kept
        end([kept.record.process], 0.0)
        revived = self._spawn(kept.server, kept.record.restarts + 1)
        return replace(revived, wait=min(2 * kept.wait, LONGEST_WAIT))

    def _stop(self, phase: str, error: str) -> None:
        self._save(phase="stopping", error=error)
        for wave in sorted({kept.server.wave for kept in self._kept}, reverse=True):
            kept_ones = [kept for kept in self._kept if kept.server.wave == wave]
            killed = end([kept.record.process for kept in kept_ones], max(kept.server.patience for kept in kept_ones))
            for kept in kept_ones:
                if kept.record.process in killed:
                    print(f"{kept.server.name}: did not end when asked and was killed", flush=True)
        self._save(phase=phase, servers=())

    def _check_passwords(self, credentials: Credentials) -> None:
        """Find out now, not at the first run, whether the servers' databases know other passwords."""
        if not self.settings.authentication:
            return
        by_name = {kept.server.name: kept.server.health for kept in self._kept}
        probes = {
            "mlflow": ("/api/2.0/mlflow/experiments/search?max_results=1", f"{MLFLOW_USER}:{credentials.mlflow_password}"),
            "prefect": ("/api/admin/version", credentials.prefect_auth_string),
        }
        for name, (path, user) in probes.items():
            base = by_name[name].removesuffix("/api/health").removesuffix("/health")
            request = urllib.request.Request(base + path)  # noqa: S310 - an address of this laboratory
            request.add_header("Authorization", "Basic " + b64encode(user.encode()).decode())
            try:
                urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
            except urllib.error.HTTPError as error:
                if error.code in {401, 403}:
                    raise ConfigError(
                        f"{name} refuses the password of the environment or of {self.folder / 'credentials.json'}; it knows "
                        "the one it was first started with: give that one, or change it there first"
                    ) from error
                raise ResourceError(f"{name} answers {error.code} to a first request; see {self._log(name)}") from error

    def _write_environment(self, credentials: Credentials) -> None:
        variables = client_environment(self.settings, credentials)
        lines = [
            f"export {name}='{value.replace(chr(39), chr(39) + chr(92) + 2 * chr(39))}'" for name, value in variables.items()
        ]
        write_private(self.folder / ENVIRONMENT_FILE, "\n".join(lines) + "\n")

    def _save(self, **changes: object) -> None:
        self._state = replace(self._state, **changes)  # type: ignore[arg-type]
        self._state.write(self.folder)

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _tail(self, name: str) -> str:
        return tail(self._log(name))


def is_healthy(url: str) -> bool:
    """Whether an address answers 200 within two seconds; an empty one counts as healthy."""
    if not url:
        return True
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - an address of this laboratory
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a log, indented."""
    if not path.is_file():
        return f"  (no log at {path})"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        text = file.read().decode(errors="replace")
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) + f"\n  (all of it: {path})"


def make_folder(folder: Path) -> None:
    """Make the laboratory's folder, which only its owner may enter. Raises `ResourceError` if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        (folder / "logs").mkdir(exist_ok=True)
        (folder / "s3").mkdir(exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{folder} cannot be made ({error}); choose another place with SFD_LAB_FOLDER") from error
    free = shutil.disk_usage(folder).free
    if free < 2**30:
        raise ResourceError(f"{folder} has only {free / 1e9:.2f} GB free, S3 needs 1 GB to accept anything; free some space")


def _digest(server: Server) -> str:
    """Hash everything that shapes a server; it gives no secret away."""
    return sha256(repr((server.command, sorted(server.environment.items()))).encode()).hexdigest()
