"""Reads YAML as DVC does, writes it for such readers, and reads and sets nested values by dotted keys."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from sfd_core.host.errors import ConfigError

LARGEST = 2**63


class _Constructor(SafeConstructor):
    """Refuses whole numbers that no value can take; Python cannot even print one of 5,000 digits."""

    def construct_yaml_int(self, node: Any) -> Any:
        value = super().construct_yaml_int(node)
        if not -LARGEST < value < LARGEST:
            raise ConstructorError(
                None, None, f"the number {node.value[:20]}... is larger than any value can be", node.start_mark
            )
        return value


_Constructor.add_constructor("tag:yaml.org,2002:int", _Constructor.construct_yaml_int)


class _Dumper(yaml.SafeDumper):
    """Writes repeated values in full instead of as aliases, and quotes text that only YAML 1.2 takes for a number."""

    def ignore_aliases(self, _: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+$|0o[0-7]+$"), list("-+.0123456789")
)


def read_utf8(path: Path) -> str:
    """Return the text of a file. Raises `ConfigError` if it is not UTF-8, and `OSError`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error


def parse_yaml(text: str, source: str) -> Any:
    """Return the values of a YAML text by the rules of YAML 1.2: 1e-05 is a number, 0120 is 120, yes is a word.

    Raises `ConfigError` with the line of what cannot be read, of a key that is there twice, and of tags.
    """
    try:
        reader = YAML(typ="safe", pure=True)
        reader.Constructor = _Constructor
        return reader.load(text)
    except MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise ConfigError(f"{source} is not valid YAML: {line}{error.problem}") from error
    except RecursionError as error:
        raise ConfigError(f"{source} is not valid YAML: it is nested too deeply") from error
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{source} is not valid YAML: {str(error).splitlines()[0]}") from error


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return values as a YAML text from which `parse_yaml` reads the same ones."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, width=120)


def flat_values(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key, in order."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat_values(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return `key BEFORE instead of NOW` for every nested value that is not equal."""
    old, new = flat_values(before), flat_values(now)
    keys = dict.fromkeys([*old, *new])
    return [f"{key} {old.get(key)} instead of {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def set_value(values: Any, key: str, value: Any) -> None:
    """Set the nested value of a dotted key in place. Raises `ConfigError` for an unknown group; the check finds keys.

    The groups on the way become the key's own: YAML's anchors put one group in several places, which keep their values.
    """
    *parents, last = key.split(".")
    for parent in parents:
        group = values.get(parent)
        if not isinstance(group, dict):
            raise ConfigError(
                f"the parameter file has no value {key!r}; write keys with dots, such as train.optimisation.steps"
            )
        values[parent] = group = dict(group)
        values = group
    values[last] = value
