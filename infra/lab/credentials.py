"""Secrets of the laboratory: from the environment, or generated once into a file that only its owner reads."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

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
Secret = Annotated[str, Field(min_length=1, repr=False)]


class Credentials(BaseModel):
    """All secrets; its representation shows none of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    s3_access_key_id: Secret
    s3_secret_access_key: Secret
    mlflow_password: Secret
    """Of MLflow's user `admin`."""
    mlflow_cookie_key: Secret
    """Signs MLflow's forms."""
    prefect_auth_string: Secret
    """USER:PASSWORD of the Prefect API and its pages."""

    @classmethod
    def of(cls, folder: Path, environment: Mapping[str, str]) -> Self:
        """Read or generate the file in `folder`; values of the environment are used instead and not written there.

        Raises `DataError` for a damaged file, `ConfigError` for a variable that cannot be used.
        """
        path = folder / FILE
        if not path.is_file():
            write_private(path, cls._generated().model_dump_json(indent=2) + "\n")
        path.chmod(0o600)
        try:
            kept = cls.model_validate_json(path.read_text())
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}); delete it, and `make up` generates new credentials") from error
        given = {name: environment[variable] for name, variable in VARIABLES.items() if environment.get(variable)}
        credentials = kept.model_copy(update=given)
        credentials._check()
        return credentials

    @classmethod
    def _generated(cls) -> Self:
        return cls(
            s3_access_key_id=secrets.token_hex(10),
            s3_secret_access_key=secrets.token_hex(20),
            mlflow_password=secrets.token_urlsafe(18),
            mlflow_cookie_key=secrets.token_hex(32),
            prefect_auth_string=f"lab:{secrets.token_urlsafe(18)}",
        )

    def values(self) -> tuple[str, ...]:
        """Return all secrets."""
        return tuple(self.model_dump().values())

    def _check(self) -> None:
        if len(self.mlflow_password) < SHORTEST:
            raise ConfigError(f"{VARIABLES['mlflow_password']} is shorter than {SHORTEST} characters; choose a longer password")
        user, _, password = self.prefect_auth_string.partition(":")
        if not user or len(password) < SHORTEST:
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
