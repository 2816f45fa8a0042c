"""Which MLflow store, and whether it is there; answered without importing mlflow."""

import http.client
import os
import urllib.error
import urllib.request
from urllib.parse import urlsplit, urlunsplit

from sfd_core.host.paths import STATE

EMBEDDED_SCHEME = "sqlite:///"
ANSWER_SECONDS = 10.0


def store_uri() -> str:
    """Return MLFLOW_TRACKING_URI or the address of the embedded store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{EMBEDDED_SCHEME}{(STATE / 'mlflow.db').absolute()}"


def is_embedded(uri: str) -> bool:
    """Whether the store is a file of this machine."""
    return uri.startswith(EMBEDDED_SCHEME)


def public(uri: str) -> str:
    """Return an address without a user and password that it may hold."""
    address = urlsplit(uri)
    return urlunsplit(address._replace(netloc=address.netloc.rpartition("@")[2]))


def is_reachable(uri: str) -> bool:
    """Whether a server answers at the store's address, whatever it says; one that accepts and is silent does not."""
    if urlsplit(uri).scheme not in {"http", "https"}:
        return True
    try:
        with urllib.request.urlopen(f"{public(uri).rstrip('/')}/health", timeout=ANSWER_SECONDS):  # noqa: S310 - http, as seen above
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException):
        return False
