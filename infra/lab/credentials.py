"""Secrets of the laboratory: from the environment, or generated once into a file that only its owner reads."""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.paths import atomic_path

FILE = "credentials.json"
MLFLOW_USER = "admin"
VARIABLES = {
    "s3_access_key_id": "SFD_LAB_S3_ACCESS_KEY_ID",
    "s3_secret_access_key": "SFD_LAB_S3_SECRET_ACCESS_KEY",
    "mlflow_password": "SFD_LAB_MLFLOW_PASSWORD",
    "mlflow_cookie_key": "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "prefect_auth_string": "PREFECT_SERVER_API_AUTH_STRING",
}
"""Field -> environment variable that is used instead of the file's value."""
SHORTEST = 12
"""Characters of a password; MLflow refuses shorter ones."""


@dataclass(frozen=True, repr=False)
class Credentials:
    """Everything that must not be seen; its representation shows none of it."""

    s3_access_key_id: str
    s3_secret_access_key: str
    mlflow_password: str
    """Of MLflow's user `admin`."""
    mlflow_cookie_key: str
    """Signs MLflow's forms."""
    prefect_auth_string: str
    """USER:PASSWORD of the Prefect API and its pages."""

    @classmethod
    def of(cls, folder: Path, environment: Mapping[str, str]) -> Self:
        """Read or generate the file in `folder`; what the environment gives is used instead and not written there.

        Raises `DataError` for a damaged file, `ConfigError` for a variable that cannot be used.
        """
        path = folder / FILE
        if path.is_file():
            kept = _read(path)
        else:
            kept = _generate()
            write_private(path, json.dumps(kept, indent=2) + "\n")
        path.chmod(0o600)
        given = {name: environment[variable] for name, variable in VARIABLES.items() if environment.get(variable)}
        credentials = cls(**{**kept, **given})
        credentials._check()
        return credentials

    def values(self) -> tuple[str, ...]:
        """Return all secrets, for those that must leave them out of something."""
        return tuple(asdict(self).values())

    def _check(self) -> None:
        if len(self.mlflow_password) < SHORTEST:
            raise ConfigError(f"{VARIABLES['mlflow_password']} is shorter than {SHORTEST} characters; choose a longer password")
        user, separator, password = self.prefect_auth_string.partition(":")
        if not (user and separator and len(password) >= SHORTEST):
            raise ConfigError(
                f"{VARIABLES['prefect_auth_string']} must be USER:PASSWORD with at least {SHORTEST} characters of password"
            )


def write_private(path: Path, text: str) -> None:
    """Write a file, whole or not at all, that is never readable by anyone else."""
    mask = os.umask(0o077)
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(text)
    finally:
        os.umask(mask)


def _generate() -> dict[str, str]:
    return {
        "s3_access_key_id": secrets.token_hex(10),
        "s3_secret_access_key": secrets.token_hex(20),
        "mlflow_password": secrets.token_urlsafe(18),
        "mlflow_cookie_key": secrets.token_hex(32),
        "prefect_auth_string": f"lab:{secrets.token_urlsafe(18)}",
    }


def _read(path: Path) -> dict[str, str]:
    try:
        kept = json.loads(path.read_text())
        if set(kept) != {field.name for field in fields(Credentials)} or not all(
            isinstance(v, str) and v for v in kept.values()
        ):
            raise ValueError("it lacks a secret")
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it, and `make up` generates new credentials") from error
    return dict(kept)
