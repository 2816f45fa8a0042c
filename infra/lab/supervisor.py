"""Starts the servers in order, restarts those that die, and stops all in reverse order when asked.

It holds the lock of the laboratory's folder as long as it lives. Killed, it leaves the servers running, and the next one
takes over those that are still as they should be: a sweep of many hours does not end with it.

supervisord 4.3 was tried in its place and would save about 60 lines (spawning, waits between restarts, log rotation). It
starts programs by priority without waiting for their health, gives up after a number of failed starts, and once killed and
started again it runs second copies beside the servers that it left, which fail on their ports. Ordered start by health,
take-over, ports and the report of `status` would stay ours.
"""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import httpx

from infra.lab.credentials import Credentials, write_private
from infra.lab.databases import Databases, make_databases
from infra.lab.ports import choose_ports, require_free
from infra.lab.processes import MARK, Identity, end, ticks
from infra.lab.servers import Server, client_environment, inherited, servers, write_configuration
from infra.lab.settings import LOOPBACK, Settings
from infra.lab.state import LOCK, Phase, Record, State
from sfd_core.host.errors import ConfigError, ResourceError, SFDError
from sfd_core.host.locks import locked
from sfd_core.host.paths import require_disk

ENVIRONMENT_FILE = "env"
SECONDS_TO_START = 180.0
FIRST_REQUEST_SECONDS = 60.0
"""MLflow loads much with its first request, which takes long on a busy machine."""
LONGEST_LOG = 10 * 2**20
"""Bytes; a longer one is set aside at the next start."""
FIRST_WAIT, LONGEST_WAIT, CALM = 1.0, 60.0, 300.0
"""Seconds: the first and the longest wait before a restart, and how long a server must live to begin anew."""
TAIL_LINES = 8


@dataclass
class Kept:
    """A server with its process."""

    server: Server
    record: Record
    popen: subprocess.Popen[bytes] | None = None
    """None for one that an earlier supervisor started."""
    wait: float = FIRST_WAIT
    due: float | None = None
    """Seconds since 1970 at which it is restarted, if it died."""

    @property
    def runs(self) -> bool:
        """Whether its process is there."""
        return self.popen.poll() is None if self.popen is not None else self.record.process.runs


class Supervisor:
    """One laboratory from start to stop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.folder
        self._kept: dict[str, Kept] = {}
        self._asked_to_stop = False
        self._state = State(Identity.of(os.getpid()), settings.fingerprint, started=time.time())

    def run(self) -> None:
        """Start, watch until SIGTERM or SIGINT, stop. Raises `SFDError` if the laboratory cannot be started."""
        busy = f"another process runs the laboratory in {self.folder}; stop it with `make down`"
        with locked(self.folder / LOCK, busy):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, self._ask_to_stop)
            earlier = State.read(self.folder)
            try:
                self._start(earlier)
                self._watch()
            except BaseException as error:
                self._stop(
                    "failed", str(error) if isinstance(error, SFDError) else "the supervisor broke down; see supervisor.log"
                )
                raise
            self._stop("stopped", "")

    def _ask_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._asked_to_stop = True

    def _start(self, earlier: State | None) -> None:
        credentials = Credentials.of(self.folder, os.environ)
        databases = Databases.of(self.folder, self.settings.database_url)
        own = {"s3": self.settings.s3_port} if self.settings.host == LOOPBACK else {}
        running = earlier.leftovers if earlier else []
        ports = choose_ports(earlier.ports if earlier else {}, own, any(record.name == "s3" for record in running))
        self._state = replace(self._state, ports=ports)
        if self.settings.database_url:
            make_databases(self.settings.database_url)
        write_configuration(self.settings, credentials, databases)
        wanted = servers(self.settings, credentials, databases, ports)
        self._adopt(wanted, running)
        for server in wanted:
            if server.name not in self._kept:
                require_free(server)
        for wave in sorted({server.wave for server in wanted}):
            self._start_wave([server for server in wanted if server.wave == wave])
            if wave == 1:
                for server in wanted:
                    self._check_password(server)
                variables = client_environment(self.settings, credentials)
                lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
                write_private(self.folder / ENVIRONMENT_FILE, "".join(lines))
            if self._asked_to_stop:
                return
        self._save("running")

    def _adopt(self, wanted: Sequence[Server], running: Sequence[Record]) -> None:
        """Keep servers of an earlier supervisor that are as they should be now; end the others."""
        by_digest = {(server.name, server.digest): server for server in wanted}
        for record in running:
            server = by_digest.get((record.name, record.digest))
            if server is not None and record.process.runs:
                self._kept[server.name] = Kept(server, record)
                print(f"{record.name}: taken over, process {record.process.pid}", flush=True)
            else:
                end([record.process], record.patience)
                print(f"{record.name}: ended an earlier process, {record.process.pid}", flush=True)
        self._save("starting")

    def _start_wave(self, wave: Sequence[Server]) -> None:
        for server in wave:
            if server.name not in self._kept:
                self._spawn(server)
        for _ in ticks(SECONDS_TO_START):
            for server in wave:
                if not self._kept[server.name].runs:
                    raise ResourceError(f"{server.name} ended as soon as it began:\n{tail(self._log(server.name))}")
            waiting = [server.name for server in wave if not is_healthy(server.health)]
            if not waiting or self._asked_to_stop:
                return
        raise ResourceError(
            f"{', '.join(waiting)} did not answer within {SECONDS_TO_START:.0f} seconds; see {self._log(waiting[0])}"
        )

    def _spawn(self, server: Server, restarts: int = 0, wait: float = FIRST_WAIT) -> None:
        log = self._log(server.name)
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
        self._kept[server.name] = Kept(server, server.record(Identity.of(popen.pid, mark), restarts), popen, wait)
        self._save(self._state.phase)

    def _watch(self) -> None:
        while not self._asked_to_stop:
            for kept in list(self._kept.values()):
                if not kept.runs:
                    self._revive(kept)
            time.sleep(0.5)

    def _revive(self, kept: Kept) -> None:
        """Restart a server that died, after a wait that doubles while it keeps dying."""
        now, name = time.time(), kept.server.name
        if kept.due is None:
            if now - kept.record.process.created > CALM:
                kept.wait = FIRST_WAIT
            kept.due = now + kept.wait
            print(f"{name}: ended; restarted in {kept.wait:.0f} s; its log ends with\n{tail(self._log(name))}", flush=True)
        elif now >= kept.due:
            end([kept.record.process], 0.0)
            self._spawn(kept.server, kept.record.restarts + 1, min(2 * kept.wait, LONGEST_WAIT))

    def _stop(self, phase: Phase, error: str) -> None:
        self._state = replace(self._state, error=error)
        self._save("stopping")
        for wave in sorted({kept.server.wave for kept in self._kept.values()}, reverse=True):
            records = [kept.record for kept in self._kept.values() if kept.server.wave == wave]
            killed = end([record.process for record in records], max(record.patience for record in records))
            for record in records:
                if record.process in killed:
                    print(f"{record.name}: did not end when asked and was killed", flush=True)
        self._kept.clear()
        self._save(phase)

    def _check_password(self, server: Server) -> None:
        """Find out now, not at the first run, whether a server's database holds another password."""
        if server.login is None:
            return
        url, user, password = server.login
        try:
            answer = httpx.get(url, auth=(user, password), timeout=FIRST_REQUEST_SECONDS)
        except httpx.HTTPError as error:
            raise ResourceError(
                f"{server.name} does not answer a first request ({error}); see {self._log(server.name)}"
            ) from error
        if answer.status_code in {401, 403}:
            raise ConfigError(
                f"{server.name} refuses the password of the environment or of {self.folder / 'credentials.json'}; it keeps the "
                "one of its first start: use that one, or change it there first"
            )
        if answer.is_error:
            raise ResourceError(f"{server.name} answers {answer.status_code} to a first request; see {self._log(server.name)}")

    def _save(self, phase: Phase) -> None:
        records = sorted((kept.record for kept in self._kept.values()), key=lambda record: (record.wave, record.name))
        self._state = replace(self._state, phase=phase, servers=tuple(records))
        self._state.write(self.folder)

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"


def is_healthy(url: str) -> bool:
    """Whether an address answers 200 within two seconds; an empty one counts as healthy."""
    try:
        return not url or httpx.get(url, timeout=2).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def tail(path: Path) -> str:
    """Return the last lines of a log, indented."""
    if not path.is_file():
        return f"  (no log at {path})"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = file.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
    return "".join(f"  {line}\n" for line in lines) + f"  (all of it: {path})"


def make_folder(folder: Path) -> None:
    """Make the laboratory's folder, which only its owner may enter. Raises `ResourceError` if that is impossible."""
    try:
        for path in (folder, folder / "logs", folder / "s3"):
            path.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise ResourceError(f"{folder} cannot be made ({error}); choose another place with SFD_LAB_FOLDER") from error
    require_disk(folder, 2**30, "S3")
