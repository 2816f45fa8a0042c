"""Addresses of servers, which may hold a password: whether they can be right, and how they are shown."""

import os
import re
from urllib.parse import SplitResult, unquote, urlsplit

from sfd_core.host.errors import ConfigError

LONGEST_REASON = 200
PREFECT_EXAMPLE = "http://HOST:PORT/api"
_USER = re.compile(r"^([^:/@]+://)?(?:[^/:@\[]*:(?!\d*(?:/|$)).*@|[^/]*@)")
"""User and password before a host; a password with a `/` differs from a port."""
_ANY_USER = re.compile(r"(://)[^/\s@]*@")
_SECRET = re.compile(r"([?&][^=&]*(?:pass|pwd|token|secret|key|sig)[^=&]*=)[^&\s]+", re.IGNORECASE)
"""A secret among the options of an address."""


def public(uri: str) -> str:
    """Return an address without user, password and secret options."""
    return _SECRET.sub(r"\1***", _USER.sub(r"\1", uri))


def in_a_line(error: Exception, uri: str) -> str:
    """Return the first line of what an error of the server at `uri` says, without the secrets of addresses."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:LONGEST_REASON].replace(uri, public(uri))
    password = split(uri).password or ""
    for secret in filter(None, (password, unquote(password))):
        line = line.replace(secret, "***")
    return _SECRET.sub(r"\1***", _ANY_USER.sub(r"\1", line))


def split(uri: str) -> SplitResult:
    """Split an address; one that cannot be split has no parts."""
    try:
        return urlsplit(uri)
    except ValueError:
        return urlsplit("")


def why_no_server(uri: str) -> str:
    """Return in words why an address cannot be that of an HTTP server, without asking it; "" if it can."""
    address = split(uri)
    if address.scheme not in {"http", "https"}:
        return "it does not begin with http:// or https://"
    try:
        right = address.port != 0
    except ValueError:
        right = False
    if not right:
        return "its port is no number from 1 to 65535"
    return "" if re.fullmatch(r"[\w.:%-]+", address.hostname or "") else "it names no host"


def require_s3() -> None:
    """Raise `ConfigError` if AWS_ENDPOINT_URL cannot be the address of an S3 server, or holds a password."""
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if uri := os.environ.get(variable, ""):
            require_server(variable, uri, "http://HOST:PORT")
            if public(uri) != uri:
                raise ConfigError(
                    f"{variable} holds a user or a password, which S3 does not take there; set it to {public(uri)}, and "
                    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                )


def require_server(variable: str, uri: str, example: str) -> None:
    """Raise `ConfigError` if the address in an environment variable cannot be that of an HTTP server."""
    if reason := why_no_server(uri):
        raise ConfigError(f"{variable} is {public(uri)!r}, but {reason}; set it to an address such as {example}")
