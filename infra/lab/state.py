"""What the supervisor writes down for `up`, `down` and `status`, and for the supervisor after it."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from infra.lab.processes import Identity
from sfd_core.host.errors import DataError, ResourceError
from sfd_core.host.paths import write_json

FILE, LOCK = "state.json", "lock"

Phase = Literal["starting", "running", "stopping", "stopped", "failed"]


@dataclass(frozen=True)
class Record:
    """One server that was started."""

    name: str
    process: Identity
    digest: str
    """Hash of its command and environment."""
    address: str
    health: str
    patience: float
    wave: int
    restarts: int = 0


@dataclass(frozen=True)
class State:
    """The laboratory as its supervisor knows it; it holds no secret."""

    supervisor: Identity
    fingerprint: str
    """Of the settings."""
    phase: Phase = "starting"
    error: str = ""
    started: float = 0.0
    """Seconds since 1970."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """Ports of SeaweedFS; kept from one start to the next."""
    servers: tuple[Record, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return what was written in `folder`, or None. Raises `DataError` if it is damaged."""
        path = folder / FILE
        try:
            plain = json.loads(path.read_text())
            servers = tuple(Record(**{**server, "process": Identity(**server["process"])}) for server in plain.pop("servers"))
            return cls(**{**plain, "supervisor": Identity(**plain["supervisor"]), "servers": servers})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged ({error}); end what still runs there by hand, then delete the file") from error

    def write(self, folder: Path) -> None:
        """Write it into `folder`, atomically."""
        write_json(folder / FILE, asdict(self))

    def with_server(self, record: Record) -> Self:
        """Return the state with `record` in the place of an earlier one of that name."""
        others = [server for server in self.servers if server.name != record.name]
        return replace(self, servers=tuple(sorted([*others, record], key=lambda server: (server.wave, server.name))))

    @property
    def leftovers(self) -> list[Record]:
        """Servers of which something still runs, the last started first."""
        return [record for record in reversed(self.servers) if record.process.runs or record.process.group()]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the laboratory in `folder` for this process; raises `ResourceError` if another process does."""
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResourceError(f"another process runs the laboratory in {folder}; stop it with `make down`") from error
        yield


def is_supervised(folder: Path) -> bool:
    """Whether a supervisor holds the laboratory in `folder`."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
