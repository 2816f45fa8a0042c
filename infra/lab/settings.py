"""What a user may choose about the laboratory, by environment variables, checked before anything starts."""

import hashlib
import ipaddress
import shlex
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import STATE

FOLDER, HOST, NAME = "SFD_LAB_FOLDER", "SFD_LAB_HOST", "SFD_LAB_NAME"
S3_PORT, MLFLOW_PORT, PREFECT_PORT = "SFD_LAB_S3_PORT", "SFD_LAB_MLFLOW_PORT", "SFD_LAB_PREFECT_PORT"
AUTHENTICATION, WORKER, DATABASE = "SFD_LAB_AUTH", "SFD_LAB_WORKER", "SFD_DATABASE_URL"
DEFAULT_PORTS = {S3_PORT: 8333, MLFLOW_PORT: 5000, PREFECT_PORT: 4200}
LOOPBACK = "127.0.0.1"
EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104 - recognised, not bound
DEPLOYMENTS = Path("flows/deployments.py")


@dataclass(frozen=True)
class Settings:
    """The laboratory's choices; equal settings, equal laboratory."""

    folder: Path
    """Databases, buckets, logs, credentials and pids; absolute."""
    host: str
    """Address that S3, MLflow and Prefect listen on."""
    name: str
    """Name or address by which clients reach `host`."""
    s3_port: int
    mlflow_port: int
    prefect_port: int
    authentication: bool
    """Whether MLflow and Prefect ask for a password; S3 always asks for keys."""
    database_url: str | None
    """PostgreSQL server of MLflow and Prefect; None for SQLite files."""
    worker: tuple[str, ...]
    """Command that serves the deployments; empty for none."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """Read the variables. Raises `ConfigError` for a value that cannot be used, before anything starts."""
        host = environment.get(HOST) or LOOPBACK
        asked = _switch(environment, AUTHENTICATION)
        if asked is False and not is_loopback(host):
            raise ConfigError(
                f"{HOST} is {host}, which other machines reach, but {AUTHENTICATION} is off; anyone there could start programs "
                f"on this machine: unset {AUTHENTICATION}, or unset {HOST} to listen on {LOOPBACK} only"
            )
        ports = {variable: _port(environment, variable) for variable in DEFAULT_PORTS}
        if len(set(ports.values())) < len(ports):
            chosen = ", ".join(f"{variable}={port}" for variable, port in ports.items())
            raise ConfigError(f"two servers cannot share a port ({chosen}); give each its own")
        return cls(
            folder=Path(environment.get(FOLDER) or STATE / "lab").absolute(),
            host=host,
            name=environment.get(NAME) or (socket.gethostname() if host in EVERYWHERE else host),
            s3_port=ports[S3_PORT],
            mlflow_port=ports[MLFLOW_PORT],
            prefect_port=ports[PREFECT_PORT],
            authentication=bool(asked) or not is_loopback(host),
            database_url=_database_url(environment),
            worker=_worker(environment),
        )

    @property
    def is_exposed(self) -> bool:
        """Whether other machines reach the servers."""
        return not is_loopback(self.host)

    @property
    def fingerprint(self) -> str:
        """A hash of all choices; it gives no secret away."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def address(self, port: int) -> str:
        """Return the address by which clients reach `port`."""
        return f"http://{bracketed(self.name)}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches servers that listen on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bracketed(host: str) -> str:
    """Return a host as it stands in an address."""
    return f"[{host}]" if ":" in host else host


def _switch(environment: Mapping[str, str], variable: str) -> bool | None:
    text = environment.get(variable, "")
    if text not in {"", "on", "off"}:
        raise ConfigError(f"{variable} is {text!r}, but must be on or off; set it right or unset it")
    return None if text == "" else text == "on"


def _port(environment: Mapping[str, str], variable: str) -> int:
    text = environment.get(variable) or str(DEFAULT_PORTS[variable])
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise ConfigError(f"{variable} is {text!r}, but must be a port from 1 to 65535; set it right or unset it")
    return int(text)


def _database_url(environment: Mapping[str, str]) -> str | None:
    """Return the URL of a PostgreSQL server; messages leave out what may hold a password."""
    text = environment.get(DATABASE)
    if not text:
        return None
    try:
        address = urlsplit(text)
        usable = address.scheme in {"postgresql", "postgres"} and bool(address.hostname) and address.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            f"{DATABASE} is no PostgreSQL address; write postgresql://USER:PASSWORD@HOST:PORT/NAME "
            "(special characters percent-encoded), or unset it for SQLite files"
        )
    return text


def _worker(environment: Mapping[str, str]) -> tuple[str, ...]:
    text = environment.get(WORKER)
    if text is None:
        return (sys.executable, "-m", "flows.deployments") if DEPLOYMENTS.is_file() else ()
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"{WORKER} is {text!r}, which is no command line ({error}); set it right or unset it") from error
