"""The pipeline run beside the project with other values: in `.sfd/experiments/<name>`, sharing the project's DVC cache.

An experiment is a folder with the project's code and pipeline as they are now and a parameter file of its own; what it has in
common with the project, or with itself before it was broken off, comes out of the cache and is not computed again.
"""

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sfd_core.experiment.inputs import link_inputs, require_inputs, require_none_in_outputs
from sfd_core.experiment.params import parse_params
from sfd_core.experiment.values import set_value
from sfd_core.host.errors import DataError
from sfd_core.host.paths import STATE

COPIED = ("sfd_core", "docs/results", "dvc.yaml", ".dvcignore", "requirements.lock")
CONFIG = """[core]
    analytics = false
    check_update = false
    no_scm = true
[cache]
    dir = {cache}
"""


@dataclass(frozen=True)
class Axis:
    """One value of a variant that takes several values, such as `seed` or `learning_rate`."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Plan:
    """The parameters of an experiment, and of which variant each of its variants was made."""

    values: Mapping[str, Any]
    """Raw parameters, as in a parameter file."""
    origins: Mapping[str, str]


def plan_experiment(values: Mapping[str, Any], changes: Mapping[str, Any], axis: Axis | None = None) -> Plan:
    """Return the raw parameters `values` with `changes` (by dotted key) and every active variant at all points of `axis`.

    A variant that has the value already keeps its name and is not computed again. Raises `ConfigError` for an unknown key.
    """
    changed = copy.deepcopy(dict(values))
    for key, value in changes.items():
        set_value(changed, key, value)
    if axis is None:
        return Plan(changed, {name: name for name in changed["active"]})
    origins: dict[str, str] = {}
    for origin in changed["active"]:
        for value in axis.values:
            variant = copy.deepcopy(changed["variants"][origin])
            set_value(variant, axis.key, value)
            name = origin if variant == changed["variants"][origin] else f"{origin}-{axis.key}-{value}".replace(".", "p")
            changed["variants"][name] = variant
            origins[name] = origin
    changed["active"] = list(origins)
    return Plan(changed, origins)


def run_experiment(plan: Plan, folder: Path, project: Path = Path()) -> None:
    """Run the whole pipeline of `project` with the parameters of `plan` in `folder`; continues a run that was broken off.

    Raises `ConfigError` for invalid parameters, `DataError` for inputs that are not there and if a stage fails.
    """
    params = parse_params(plan.values, source="the experiment")
    require_none_in_outputs(params, project)
    require_inputs(params, project)
    _lay_out(plan, folder, project)
    link_inputs(params, folder, project)
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{project.resolve() / STATE / 'mlflow.db'}"} | dict(os.environ)
    environment |= {"DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    if subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=folder, env=environment, check=False).returncode:
        raise DataError(f"the pipeline stopped in {folder}; what is above says why, and the same command continues it")


def experiment_dir(name: str) -> Path:
    """Return the folder of an experiment."""
    return STATE / "experiments" / name


def origin_values(plan: Plan, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return, by variant of the experiment, the variant it was made of and its values of `keys`."""
    return {
        name: {"variant": origin, **{key: plan.values["variants"][name][key] for key in keys}}
        for name, origin in plan.origins.items()
    }


def _lay_out(plan: Plan, folder: Path, project: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source, target = project / name, folder / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    (folder / ".dvc").mkdir(exist_ok=True)
    cache = (project / ".dvc" / "cache").resolve()
    (folder / ".dvc" / "config").write_text(CONFIG.format(cache=cache))
    (folder / "params.yaml").write_text(yaml.safe_dump(dict(plan.values), sort_keys=False))
