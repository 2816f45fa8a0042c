"""Sets values of a parameter file by dotted keys."""

from typing import Any

from sfd_core.host.errors import ConfigError


def set_value(values: Any, key: str, value: Any) -> None:
    """Set the nested value of a dotted key in place. Raises `ConfigError` for an unknown group; the check finds keys."""
    *parents, last = key.split(".")
    for parent in parents:
        values = values.get(parent) if isinstance(values, dict) else None
    if not isinstance(values, dict):
        raise ConfigError(f"the parameter file has no value {key!r}; write keys with dots, such as train.optimisation.steps")
    values[last] = value
