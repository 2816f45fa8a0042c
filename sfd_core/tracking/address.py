"""The address of the MLflow store, and whether it answers, without importing mlflow."""

import http.client
import os
import urllib.error
import urllib.request
from urllib.parse import urlsplit, urlunsplit

from sfd_core.host.paths import STATE

EMBEDDED_SCHEME = "sqlite:///"
ANSWER_SECONDS = 10.0


def store_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the address of the embedded store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{EMBEDDED_SCHEME}{(STATE / 'mlflow.db').absolute()}"


def is_embedded(uri: str) -> bool:
    """Whether the store is a local file."""
    return uri.startswith(EMBEDDED_SCHEME)


def public(uri: str) -> str:
    """Return an address without user and password."""
    address = urlsplit(uri)
    return urlunsplit(address._replace(netloc=address.netloc.rpartition("@")[2]))


def is_reachable(uri: str) -> bool:
    """Whether a server at the store's address sends any HTTP answer."""
    if urlsplit(uri).scheme not in {"http", "https"}:
        return True
    try:
        with urllib.request.urlopen(f"{public(uri).rstrip('/')}/health", timeout=ANSWER_SECONDS):  # noqa: S310 - http, as seen above
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException):
        return False
