"""The databases of MLflow and Prefect: SQLite files, or databases on a PostgreSQL server."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit, urlunsplit

from sfd_core.host.errors import ResourceError
from sfd_core.host.paths import sqlite_address

DEFAULT_NAME = "sfd"
CONNECT_SECONDS = 10
PURPOSES = ("mlflow", "mlflow_auth", "prefect")


@dataclass(frozen=True, repr=False)
class Databases:
    """SQLAlchemy addresses, which may hold a password."""

    mlflow: str
    mlflow_auth: str
    """MLflow's users, where it asks for a password."""
    prefect: str

    @classmethod
    def of(cls, folder: Path, url: str | None) -> Self:
        """Return files in `folder`, or the databases `<name>_mlflow` and so on of the PostgreSQL server at `url`."""
        if url is None:
            drivers = {"mlflow": "sqlite", "mlflow_auth": "sqlite", "prefect": "sqlite+aiosqlite"}
            return cls(**{purpose: sqlite_address(folder / f"{purpose}.db", driver) for purpose, driver in drivers.items()})
        drivers = {"mlflow": "psycopg", "mlflow_auth": "psycopg", "prefect": "asyncpg"}
        return cls(
            **{purpose: _with(url, f"postgresql+{driver}", database_name(url, purpose)) for purpose, driver in drivers.items()}
        )


def database_name(url: str, purpose: str) -> str:
    """Return the name of the database for `purpose` on the server at `url`."""
    return f"{urlsplit(url).path.strip('/') or DEFAULT_NAME}_{purpose}"


def make_databases(url: str) -> None:
    """Create the databases that the PostgreSQL server at `url` lacks.

    Raises `ResourceError` if it does not answer, refuses the user, or does not let the user create a database.
    """
    import psycopg
    from psycopg import errors, sql

    address = urlsplit(url)
    server = f"PostgreSQL at {address.hostname}:{address.port or 5432}"
    try:
        with _connect(url) as connection:
            for purpose in PURPOSES:
                name = database_name(url, purpose)
                if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
                    try:
                        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
                    except errors.InsufficientPrivilege as error:
                        raise ResourceError(
                            f"{server} does not let the user {address.username} create the database {name}; have an "
                            f"administrator run: CREATE DATABASE {name} OWNER {address.username};"
                        ) from error
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[-1].replace(address.password or "\0", "***")
        raise ResourceError(f"{server} cannot be used: {reason}; check SFD_DATABASE_URL and that the server runs") from error


def _connect(url: str) -> Any:
    """Connect to the database that every server has, or, where that is not allowed, to the one that `url` names."""
    import psycopg

    names = ["postgres", *filter(None, [urlsplit(url).path.strip("/")])]
    for name in names:
        try:
            return psycopg.connect(_with(url, "postgresql", name), autocommit=True, connect_timeout=CONNECT_SECONDS)
        except psycopg.OperationalError:
            if name == names[-1]:
                raise
    raise AssertionError


def _with(url: str, scheme: str, database: str) -> str:
    return urlunsplit(urlsplit(url)._replace(scheme=scheme, path=f"/{quote(database)}"))
