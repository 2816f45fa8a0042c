"""Complete parameter sets by name: `presets/<name>.yaml` holds what differs from its `base`, or everything without a base."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sfd_core.experiment.params import Params, parse_params
from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import atomic_path

PRESETS = Path("presets")
BASE = "base"


@dataclass(frozen=True)
class Preset:
    """A composed parameter set: what it reproduces and at what cost, and every value."""

    name: str
    header: str
    """The comment that begins its file, without comment signs."""
    values: Mapping[str, Any]
    """Raw parameters, complete."""
    text: str
    """The parameter file that it makes."""

    def check(self) -> Params:
        """Return the checked parameters. Raises `ConfigError` that names the preset and every bad value."""
        return parse_params(self.values, source=f"preset {self.name}")


class _Plain(yaml.SafeDumper):
    """Writes a value that is used twice twice."""

    def ignore_aliases(self, _: Any) -> bool:
        return True


def preset_names(folder: Path = PRESETS) -> list[str]:
    """Return the names of all presets in `folder`. Raises `ConfigError` if there is none."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if not names:
        raise ConfigError(f"{folder} holds no preset; run in the project's folder")
    return names


def load_preset(name: str, folder: Path = PRESETS) -> Preset:
    """Compose preset `name`; its values are not checked yet.

    Raises `ConfigError` for an unknown preset or base, bases that lead back to the preset, or a file that is not YAML.
    """
    text = _read(name, folder)
    header = _header(text)
    values = _compose(name, folder, ())
    if BASE in _parse(text, name):
        comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
        text = f"{comment}{yaml.dump(values, Dumper=_Plain, sort_keys=False, width=120)}"
    return Preset(name, header, values, text)


def use_preset(preset: Preset, path: Path) -> None:
    """Make `preset` the parameter file `path`, atomically; an invalid one changes nothing and raises `ConfigError`."""
    preset.check()
    with atomic_path(path) as temporary:
        temporary.write_text(preset.text)


def _compose(name: str, folder: Path, above: tuple[str, ...]) -> dict[str, Any]:
    if name in above:
        raise ConfigError(f"preset {above[0]} is based on itself ({' -> '.join([*above, name])}); mend a `{BASE}`")
    own = _parse(_read(name, folder), name)
    base = own.pop(BASE, None)
    return own if base is None else _merged(_compose(str(base), folder, (*above, name)), own)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`: groups merge, everything else is replaced, as is a group that becomes of another `kind`."""
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
        return (folder / f"{name}.yaml").read_text()
    except FileNotFoundError as error:
        raise ConfigError(f"unknown preset {name!r}; {folder} holds {', '.join(preset_names(folder))}") from error


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"preset {name} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"preset {name} holds no groups of values; write it as params.yaml is written")
    return values


def _header(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)
