"""Named parameter sets: `presets/<name>.yaml` is a diff over its `base`, or complete if it has no base."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfd_core.experiment.params import Params, parse_params
from sfd_core.experiment.values import dump_yaml, parse_yaml, read_utf8
from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import atomic_path

PRESETS = Path("presets")
BASE = "base"


@dataclass(frozen=True)
class Preset:
    """A composed parameter set with its header."""

    name: str
    header: str
    """The comment at the head of its file, without `#`."""
    values: Mapping[str, Any]
    """All parameters, unchecked."""
    text: str
    """Content of the resulting parameter file."""

    def check(self) -> Params:
        """Return the checked parameters. Raises `ConfigError` that names the preset and every bad value."""
        return parse_params(self.values, source=f"preset {self.name}")


def preset_names(folder: Path = PRESETS) -> list[str]:
    """Return the names of all presets in `folder`. Raises `ConfigError` if there is none."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if not names:
        raise ConfigError(f"{folder} holds no preset; run this in the project folder")
    return names


def load_preset(name: str, folder: Path = PRESETS) -> Preset:
    """Compose preset `name` without checking its values.

    Raises `ConfigError` for an unknown preset or base, circular bases, or a file that is not YAML.
    """
    text = _read(name, folder)
    header = _header(text)
    values = _compose(name, folder, ())
    if BASE in _parse(text, name):
        comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
        text = f"{comment}{dump_yaml(values)}"
    return Preset(name, header, values, text)


def use_preset(preset: Preset, path: Path) -> None:
    """Write `preset` to the parameter file `path` atomically. Raises `ConfigError` for an invalid preset."""
    preset.check()
    with atomic_path(path) as temporary:
        temporary.write_text(preset.text)


def _compose(name: str, folder: Path, above: tuple[str, ...]) -> dict[str, Any]:
    if name in above:
        raise ConfigError(f"preset {above[0]} is based on itself ({' -> '.join([*above, name])}); correct a `{BASE}`")
    own = _parse(_read(name, folder), name)
    base = own.pop(BASE, None)
    return own if base is None else _merged(_compose(str(base), folder, (*above, name)), own)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `changes` into `base`: groups are merged unless their `kind` changes; other values are replaced.

    The merges of OmegaConf and of DVC know no `kind`: they would leave values of the former one behind.
    """
    merged = dict(base)
    for key, change in changes.items():
        before = base.get(key)
        if isinstance(before, Mapping) and isinstance(change, Mapping) and change.get("kind") in (None, before.get("kind")):
            merged[key] = _merged(before, change)
        else:
            merged[key] = change
    return merged


def _read(name: str, folder: Path) -> str:
    try:
        return read_utf8(folder / f"{name}.yaml")
    except FileNotFoundError as error:
        raise ConfigError(f"unknown preset {name!r}; {folder} holds {', '.join(preset_names(folder))}") from error


def _parse(text: str, name: str) -> dict[str, Any]:
    values = parse_yaml(text, f"preset {name}")
    if not isinstance(values, dict):
        raise ConfigError(f"preset {name} holds no groups of values; write it like params.yaml")
    return values


def _header(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)
