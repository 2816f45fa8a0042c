"""The address of the MLflow store, and whether it answers, without importing mlflow."""

import http
import http.client
import json
import os
import socket
import sqlite3
import urllib.error
import urllib.request
from base64 import b64encode
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode

from sfd_core.host.addresses import in_a_line, public, split, why_no_server
from sfd_core.host.paths import STATE, existing_parent, sqlite_address

EXPERIMENT = "semantic-first-diffusion"
EMBEDDED_SCHEME = "sqlite:///"
ANSWER_SECONDS = 10.0
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
NO_ANSWER = (OSError, ValueError, KeyError, http.client.HTTPException, sqlite3.Error)
ADDRESSES = ("http://HOST:PORT", "postgresql+psycopg://HOST/NAME", "sqlite:///FILE")


def store_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the address of the embedded store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_address((STATE / "mlflow.db").absolute())


def experiment_name() -> str:
    """Return MLFLOW_EXPERIMENT_NAME, or the name of the experiment that holds all runs."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def is_embedded(uri: str) -> bool:
    """Whether the store is a local file."""
    return uri.startswith(EMBEDDED_SCHEME)


def embedded_file(uri: str) -> Path:
    """Return the file of an embedded store."""
    return Path(unquote(uri.removeprefix(EMBEDDED_SCHEME)))


def why_unusable(uri: str) -> str:
    """Return in words why no store can be opened at an address; "" if nothing speaks against it."""
    if is_embedded(uri):
        return _why_no_file(embedded_file(uri))
    scheme = split(uri).scheme.partition("+")[0]
    if scheme not in {"http", "https", *DATABASE_PORTS}:
        return f"it is none of {', '.join(ADDRESSES)}"
    if scheme not in DATABASE_PORTS and (reason := why_no_server(uri)):
        return reason
    if not is_reachable(uri):
        return "it does not answer"
    return _why_no_database(uri) if scheme in DATABASE_PORTS else ""


def is_reachable(uri: str) -> bool:
    """Whether a server at the store's address sends any HTTP answer, or a database there takes connections."""
    try:
        address = split(uri)
        port = DATABASE_PORTS.get(address.scheme.partition("+")[0])
        if port is not None and address.hostname:
            socket.create_connection((address.hostname, address.port or port), ANSWER_SECONDS).close()
        elif address.scheme in {"http", "https"}:
            urllib.request.urlopen(f"{public(uri).rstrip('/')}/health", timeout=ANSWER_SECONDS).close()  # noqa: S310 - http, as seen above
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


def has_run(uri: str, run: str) -> bool:
    """Whether a store has a run that is not deleted; false where no answer tells it."""
    try:
        if is_embedded(uri):
            return _stored(uri, "SELECT lifecycle_stage FROM runs WHERE run_uuid = ?", run) == "active"
        return bool(_answer(uri, "runs/get", run_id=run)["run"]["info"]["lifecycle_stage"] == "active")
    except NO_ANSWER:
        return False


def experiment_birth(uri: str) -> str | None:
    """Return when the experiment of the runs was made, "" if the store has none, and None where no answer tells it."""
    name = experiment_name()
    try:
        if is_embedded(uri):
            known = embedded_file(uri).is_file()
            return _stored(uri, "SELECT creation_time FROM experiments WHERE name = ?", name) if known else ""
        return str(_answer(uri, "experiments/get-by-name", experiment_name=name)["experiment"]["creation_time"])
    except urllib.error.HTTPError as error:
        return "" if error.code == http.HTTPStatus.NOT_FOUND else None
    except NO_ANSWER:
        return None


def _stored(uri: str, query: str, value: str) -> str:
    """Return the value that an embedded store has for a query, or ""."""
    with closing(sqlite3.connect(f"{embedded_file(uri).absolute().as_uri()}?mode=ro", uri=True)) as database:
        found = database.execute(query, (value,)).fetchone()
    return str(found[0]) if found else ""


def _answer(uri: str, call: str, **asked: str) -> Any:
    """Return the answer of a server to a call of MLflow's API."""
    address = f"{public(uri).rstrip('/')}/api/2.0/mlflow/{call}?{urlencode(asked)}"
    with urllib.request.urlopen(urllib.request.Request(address, headers=_login(uri)), timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - http, or no answer
        return json.load(answer)


def _login(uri: str) -> dict[str, str]:
    """Return the header with the user and the password of an address, or else of the environment, where MLflow reads them."""
    address = split(uri)
    user = unquote(address.username or os.environ.get("MLFLOW_TRACKING_USERNAME", ""))
    password = unquote(address.password or os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
    return {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"} if user else {}


def _why_no_file(path: Path) -> str:
    if not path.exists():
        if "'" in str(Path.cwd()):
            return "MLflow makes no database in a project whose path has a '; rename the folder, or use a server"
        place = existing_parent(path)
        return "" if place.is_dir() and os.access(place, os.W_OK) else f"{place} is no folder that can be written"
    try:
        with closing(sqlite3.connect(path, timeout=ANSWER_SECONDS)) as database:
            database.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        return f"{path} is no SQLite database: {error}"
    return "" if os.access(path, os.W_OK) else f"{path} cannot be written"


def _why_no_database(uri: str) -> str:
    """Connect once: MLflow tries for minutes, whatever the reason of the refusal."""
    import sqlalchemy

    try:
        sqlalchemy.create_engine(uri).connect().close()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        return in_a_line(error, uri)
    return ""
