"""What the supervisor writes down for `up`, `down` and `status`, and for the supervisor after it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from infra.lab.processes import Identity
from sfd_core.host.errors import DataError
from sfd_core.host.locks import is_held
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
    def read(cls, folder: Path) -> "State | None":
        """Return what was written in `folder`, or None. Raises `DataError` if it is damaged."""
        path = folder / FILE
        try:
            return TypeAdapter(State).validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise DataError(f"{path} is damaged ({error}); end what still runs there by hand, then delete the file") from error

    def write(self, folder: Path) -> None:
        """Write it into `folder`, atomically."""
        write_json(folder / FILE, asdict(self))

    @property
    def leftovers(self) -> list[Record]:
        """Servers of which something still runs, the last started first."""
        return [record for record in reversed(self.servers) if record.process.runs or record.process.group()]


def is_supervised(folder: Path) -> bool:
    """Whether a supervisor holds the laboratory in `folder`."""
    return is_held(folder / LOCK)
