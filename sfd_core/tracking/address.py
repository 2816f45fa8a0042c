"""Which MLflow store, and whether it is there; answered without importing mlflow."""

import os
import socket
from urllib.parse import urlparse

from sfd_core.paths import STATE

EMBEDDED_SCHEME = "sqlite:///"
CONNECT_SECONDS = 3.0


def store_uri() -> str:
    """Return MLFLOW_TRACKING_URI or the address of the embedded store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{EMBEDDED_SCHEME}{(STATE / 'mlflow.db').absolute()}"


def is_embedded(uri: str) -> bool:
    """Whether the store is a file of this machine."""
    return uri.startswith(EMBEDDED_SCHEME)


def is_reachable(uri: str) -> bool:
    """Whether something listens at the store's address."""
    address = urlparse(uri)
    if address.scheme not in {"http", "https"} or address.hostname is None:
        return True
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        with socket.create_connection((address.hostname, port), timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False
