"""The one rule for names that become folders, words of a command line and keys of DVC."""

from typing import Annotated

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from sfd_core.host.errors import ConfigError

DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}
"""Windows has no such files."""


def _no_device(name: str) -> str:
    if name.casefold() in DEVICES:
        raise ValueError(f"{name} is a device on Windows; choose another name")
    return name


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_+][A-Za-z0-9_+-]*$", max_length=64), AfterValidator(_no_device)]
"""Letters, digits, + - and _, no leading dash, at most 64. No dot: DVC would take what follows for a nested key."""

NAME_RULE = "use letters, digits, + - and _, at most 64, without a leading dash"


def require_name(name: str, what: str) -> str:
    """Return `name`. Raises `ConfigError` that says of `what` it cannot be the name."""
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise ConfigError(
            f"{name!r} cannot be the name of {what}: {error.errors()[0]['msg'].removeprefix('Value error, ')}; {NAME_RULE}"
        ) from error
