"""Values of a parameter file by their dotted keys."""

from typing import Any

from sfd_core.host.errors import ConfigError


def set_value(values: Any, key: str, value: Any) -> None:
    """Set the nested value that a dotted key names, in place. Raises `ConfigError` for a key that is not there."""
    *parents, last = key.split(".")
    for parent in parents:
        values = values.get(parent) if isinstance(values, dict) else None
    if not isinstance(values, dict) or last not in values:
        raise ConfigError(
            f"{key!r} names no value of the parameter file; write it as it is nested there, such as train.optimisation.steps"
        )
    values[last] = value
