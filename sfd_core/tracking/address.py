"""The address of the MLflow store, and whether it answers, without importing mlflow."""

import http.client
import os
import re
import socket
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from sfd_core.host.paths import STATE

EMBEDDED_SCHEME = "sqlite:///"
ANSWER_SECONDS = 10.0
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def store_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the address of the embedded store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{EMBEDDED_SCHEME}{(STATE / 'mlflow.db').absolute()}"


def is_embedded(uri: str) -> bool:
    """Whether the store is a local file."""
    return uri.startswith(EMBEDDED_SCHEME)


def public(uri: str) -> str:
    """Return an address without user and password."""
    return re.sub(r"^([^:/]+://)[^/]*@", r"\1", uri)


def is_reachable(uri: str) -> bool:
    """Whether a server at the store's address sends any HTTP answer, or a database there takes connections."""
    address = urlsplit(uri)
    port = DATABASE_PORTS.get(address.scheme.partition("+")[0])
    try:
        if port is not None and address.hostname:
            socket.create_connection((address.hostname, address.port or port), ANSWER_SECONDS).close()
        elif address.scheme in {"http", "https"}:
            urllib.request.urlopen(f"{public(uri).rstrip('/')}/health", timeout=ANSWER_SECONDS).close()  # noqa: S310 - http, as seen above
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True
