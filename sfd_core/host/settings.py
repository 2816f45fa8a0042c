"""What a user may choose by environment variables `SFD_...`, typed and checked; docs/settings.md has the table."""

from typing import Literal, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from sfd_core.host.errors import ConfigError


class EnvironmentSettings(BaseSettings):
    """Variables of the environment as fields: the title says what a value must be, the docstring what it means."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    @classmethod
    def read(cls) -> Self:
        """Read the variables as they are now. Raises `ConfigError` for a value that cannot be used."""
        try:
            return cls()
        except ValidationError as error:
            name, given = str(error.errors()[0]["loc"][0]), error.errors()[0]["input"]
        # outside of `except`: a traceback must not show what another variable holds
        raise ConfigError(
            f"{cls.variable(name)} is {given!r}, but must be {cls.model_fields[name].title}; set it right or unset it"
        )

    @classmethod
    def variable(cls, field: str) -> str:
        """Return the variable that sets a field."""
        return str(cls.model_fields[field].validation_alias or f"{cls.model_config['env_prefix']}{field.upper()}")


class Settings(EnvironmentSettings):
    """Choices about this machine and this run that are no part of an experiment."""

    model_config = SettingsConfigDict(env_prefix="SFD_")

    processes: int | None = Field(None, ge=1, title="a number of processes such as 1 or 8")
    """Processes that share the work of a stage; default: one for each GPU."""
    launcher: int | None = Field(None, title="a process's number")
    """Internal: the process that started this one, which ends with it."""
    checkpoints: str = Field("", pattern=r"^(s3://[^/].*)?$", title="s3://BUCKET or s3://BUCKET/PREFIX")
    """Mirror checkpoints there, so that any machine can resume a training; default: no mirror."""
    verify: Literal["always"] | None = Field(None, title="'always'")
    """Hash every file and check every value again; default: trust files unchanged since the last check."""
    worker: str = Field("", title="a name")
    """Name of this worker; default: the host's name. Two workers on one host need two names."""
    gpus_per_point: int = Field(1, ge=1, title="a number of GPUs such as 1 or 8")
    """GPUs of one training in a sweep."""
    hour_price: float | None = Field(None, ge=0, title="a price of an hour such as 2.5")
    """Price of an hour of a training's machines, in any currency, for the forecast of its cost; default: no cost is shown."""
    resume: Literal["continue", "restart"] | None = Field(None, title="continue or restart")
    """Work of other code that took over ten minutes: resume it, or keep it and start again; default: an error."""
    flow_run: str = Field("", title="an address")
    """Internal: page of the Prefect flow run that computes here, to which its runs in MLflow link."""
    grace_seconds: int = Field(25, ge=1, title="a number of seconds such as 25 or 100")
    """Time of stages to end after SIGTERM; Prefect gives at most 30. `job.sbatch` sets 100 and has room for 110."""
    git_remote: str = Field("", title="the name or address of a git remote")
    """Push the refs of finished sweep points to this remote; default: keep them in the clone."""
