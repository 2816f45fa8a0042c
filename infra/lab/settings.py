"""What a user may choose about the laboratory, by environment variables, checked before anything starts."""

import hashlib
import ipaddress
import shlex
import socket
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import STATE
from sfd_core.host.settings import EnvironmentSettings

LOOPBACK = "127.0.0.1"
PORT = "a port from 1 to 65535"
EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104 - recognised, not bound
DEPLOYMENTS = Path("flows/deployments.py")


def _words(text: Any) -> Any:
    try:
        return shlex.split(text) if isinstance(text, str) else text
    except ValueError as error:
        raise ConfigError(
            f"SFD_LAB_WORKER is {text!r}, which is no command line ({error}); set it right or unset it"
        ) from error


def _default_worker() -> tuple[str, ...]:
    return (sys.executable, "-m", "flows.deployments") if DEPLOYMENTS.is_file() else ()


def _postgresql(url: SecretStr) -> SecretStr:
    """Return the address of a PostgreSQL server; the error leaves out what may hold a password."""
    try:
        address = urlsplit(url.get_secret_value())
        usable = address.scheme in {"postgresql", "postgres"} and bool(address.hostname) and address.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            "SFD_DATABASE_URL is no PostgreSQL address; write postgresql://USER:PASSWORD@HOST:PORT/NAME "
            "(special characters percent-encoded), or unset it for SQLite files"
        )
    return url


Port = Annotated[int, Field(ge=1, le=65_535)]
Command = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]


class Settings(EnvironmentSettings):
    """The laboratory's choices; equal settings, equal laboratory."""

    model_config = SettingsConfigDict(env_prefix="SFD_LAB_", env_ignore_empty=False)

    folder: Path = Field(STATE / "lab", title="a path")
    """Folder of databases, buckets, logs, credentials and pids."""
    host: str = Field(LOOPBACK, title="an address")
    """Address that S3, MLflow and Prefect listen on; any address but loopback switches passwords on."""
    name: str = Field(default_factory=lambda set_: _reachable_name(set_["host"]), title="a name or an address")
    """Name of this machine for other machines; default: SFD_LAB_HOST, or the host's name if that is 0.0.0.0 or ::."""
    s3_port: Port = Field(8333, title=PORT)
    """Port of S3."""
    mlflow_port: Port = Field(5000, title=PORT)
    """Port of MLflow."""
    prefect_port: Port = Field(4200, title=PORT)
    """Port of Prefect."""
    auth: Literal["on", "off"] | None = Field(None, title="on or off")
    """`on`: MLflow and Prefect ask for a password on loopback too; `off` is rejected beyond loopback."""
    database: Annotated[SecretStr, AfterValidator(_postgresql)] | None = Field(
        None, validation_alias="SFD_DATABASE_URL", title="postgresql://USER:PASSWORD@HOST:PORT/NAME"
    )
    """PostgreSQL server with databases `NAME_mlflow`, `NAME_mlflow_auth` and `NAME_prefect`; default: SQLite files."""
    worker: Command = Field(default_factory=_default_worker, title="a command line")
    """Command of the worker; empty for none; default: `python -m flows.deployments`."""

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value or name == "worker"}

    @field_validator("folder")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        return folder.absolute()

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.auth == "off" and self.is_exposed:
            raise ConfigError(
                f"SFD_LAB_HOST is {self.host}, which other machines reach, but SFD_LAB_AUTH is off; anyone there could start "
                f"programs on this machine: unset SFD_LAB_AUTH, or unset SFD_LAB_HOST to listen on {LOOPBACK} only"
            )
        ports = {self.variable(name): getattr(self, name) for name in ("s3_port", "mlflow_port", "prefect_port")}
        if len(set(ports.values())) < len(ports):
            chosen = ", ".join(f"{variable}={port}" for variable, port in ports.items())
            raise ConfigError(f"two servers cannot share a port ({chosen}); give each its own")
        return self

    @property
    def authentication(self) -> bool:
        """Whether MLflow and Prefect ask for a password; S3 always asks for keys."""
        return self.auth == "on" or self.is_exposed

    @property
    def database_url(self) -> str | None:
        """The PostgreSQL server's address with its password."""
        return None if self.database is None else self.database.get_secret_value()

    @property
    def is_exposed(self) -> bool:
        """Whether other machines reach the servers."""
        return not is_loopback(self.host)

    @property
    def fingerprint(self) -> str:
        """A hash of all choices; it gives no secret away."""
        return hashlib.sha256(f"{self!r} {self.database_url}".encode()).hexdigest()[:16]

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


def _reachable_name(host: str) -> str:
    return socket.gethostname() if host in EVERYWHERE else host
