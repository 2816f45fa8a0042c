"""The pipeline with other values than the project's, in a folder of its own that shares the project's DVC cache.

An experiment of `sfd experiment` is a copy of the project's code in `.sfd/experiments/<name>`; a point of a sweep is a git
worktree of one commit. Results that the project or an earlier run has are restored from the cache.
"""

import copy
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfd_core.experiment.drawable import require_drawable
from sfd_core.experiment.grid import Point, split_variants
from sfd_core.experiment.inputs import (
    in_words,
    input_digests,
    link_inputs,
    named_inputs,
    require_inputs,
    require_none_in_outputs,
)
from sfd_core.experiment.params import Params, load_params, parse_params
from sfd_core.experiment.values import differences, dump_yaml, parse_yaml, set_value
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.locks import locked
from sfd_core.host.names import require_name
from sfd_core.host.paths import RESULTS, atomic_dir
from sfd_core.workspace import git
from sfd_core.workspace.dvc import LOGS, Place, ProgramError, environment, write_local_config
from sfd_core.workspace.places import EXPERIMENTS, look_at_inputs

MOST_SHOWN = 5
COPIED = ("sfd_core", str(RESULTS), "dvc.yaml", ".dvcignore", "requirements.lock")


@dataclass(frozen=True)
class Axis:
    """One value of a variant that takes several values, such as `seed` or `learning_rate`."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Plan:
    """The parameters of an experiment, and the variant that each of its variants comes from."""

    values: Mapping[str, Any]
    """Raw parameters, as in a parameter file."""
    origins: Mapping[str, str]
    skipped: Sequence[str] = ()
    """Active variants that lack the value of the axis."""
    varied: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Variant of the experiment -> its value of the axis, by key."""


def plan_experiment(values: Mapping[str, Any], changes: Mapping[str, Any], axis: Axis | None = None) -> Plan:
    """Return the raw parameters `values` with `changes` (by dotted key) and all active variants and their studies at all values
    of `axis`.

    A variant that is at a value already keeps its name, so its results are reused; one in which nothing of the axis can vary is
    skipped. Raises `ConfigError` for an unknown key or value, and for an axis of which no active variant has anything.
    """
    changed = copy.deepcopy(dict(values))
    for key, value in changes.items():
        set_value(changed, key, value)
    params = parse_params(changed, source="the experiment")
    if axis is None:
        return Plan(changed, {name: name for name in changed["active"]})
    varied, skipped = split_variants(params, params.active, [axis.key])
    origins: dict[str, str] = {}
    settings: dict[str, dict[str, Any]] = {}
    for origin in varied:
        for value in axis.values:
            variant = copy.deepcopy(changed["variants"][origin])
            set_value(variant, axis.key, value)
            word = re.sub(r"[^A-Za-z0-9_+-]+", "_", f"{value}".replace(".", "p")).strip("_")
            name = origin if variant == changed["variants"][origin] else f"{origin}-{axis.key.rpartition('.')[2]}-{word}"
            if changed["variants"].setdefault(name, variant) != variant:
                raise ConfigError(f"varying {axis.key} makes a variant {name}, but another one has this name; rename that")
            origins[name], settings[name] = origin, {axis.key: value}
    changed["active"] = list(origins)
    changed["studies"] = {
        study + name.removeprefix(origin): {**values, "variant": name}
        for name, origin in origins.items()
        for study, values in changed["studies"].items()
        if values["variant"] == origin
    }
    return Plan(changed, origins, skipped, settings)


def run_experiment(plan: Plan, folder: Path, at_once: int, project: Path = Path()) -> None:
    """Run the whole pipeline of `project` with the parameters of `plan` in `folder`; continues an interrupted run.

    `at_once`: see `Place.reproduce`.

    Raises `ConfigError` for invalid parameters, or others than those of the experiment that is there, `DataError` for missing
    inputs and if a stage fails, `BusyError` if another process runs the experiment.
    """
    params = parse_params(plan.values, source="the experiment")
    require_drawable(params)
    require_none_in_outputs(params, project)
    require_inputs(params, project)
    busy = f"another process runs the experiment in {folder}; wait for it, or choose another name"
    with locked(folder.with_suffix(".lock"), busy):
        _require_same(params, folder)
        with nullcontext(folder) if folder.exists() else atomic_dir(folder) as place:
            _copy_code(place, project)
            _write_values(plan.values, params, place, project, scm=False)
        try:
            made = Place(folder, environment(project))
            look_at_inputs(made)
            made.reproduce(at_once)
        except ProgramError as error:
            raise DataError(f"the pipeline stopped in {folder}; see the error above; the same command continues it") from error


def experiment_dir(name: str) -> Path:
    """Return the folder of an experiment. Raises `ConfigError` if `name` cannot be one."""
    return EXPERIMENTS / require_name(name, "an experiment")


def origin_values(plan: Plan, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return, by variant of the experiment, the variant it comes from and its values of `keys` and of the axis."""
    return {
        name: {"variant": origin, **{key: plan.values["variants"][name][key] for key in keys}, **plan.varied.get(name, {})}
        for name, origin in plan.origins.items()
    }


@contextmanager
def point_place(
    project: Path,
    key: str,
    commit: str,
    values: Mapping[str, Any],
    report: Callable[[str], None],
    inputs: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[Place]:
    """Give the worktree of a sweep's point with its raw parameters `values`; deleted after a block that ends well.

    Raises `ConfigError` for invalid parameters and for other files than `inputs`, `DataError` for missing ones.
    """
    params = parse_params(values)
    require_drawable(params)
    require_inputs(params, project)
    with git.worktree(project, key, commit) as (folder, held):
        _write_values(values, params, folder, project, scm=True)
        if inputs is not None:
            _require_inputs_of(inputs, params, folder)
        place = Place(folder, environment(project), project / LOGS / f"{key}.log", (held,), report)
        look_at_inputs(place)
        yield place
        git.forget_worktree(project, folder)


def require_same_sweep(project: Path, name: str, points: Sequence[Point]) -> None:
    """Raise `ConfigError` if the sweep `name` has one of the points with values that give other results.

    Other code or files may continue it.
    """
    named = git.read_records(project, name)
    for point in points:
        if point.name not in named:
            continue
        before = parse_yaml(git.file_of(project, named[point.name]["commit"], "params.yaml"), f"{git.REFS}/{name}/{point.name}")
        shaping = [
            {key: value for key, value in of.items() if key not in ("engine", "report")} for of in (before, point.values)
        ]
        if changed := differences(*shaping):
            raise ConfigError(
                f"the sweep {name} has point {point.name} with other values: {'; '.join(changed[:MOST_SHOWN])}; "
                "choose another name"
            )


def _require_inputs_of(inputs: Mapping[str, Mapping[str, str]], params: Params, folder: Path) -> None:
    named = named_inputs(params, folder)
    here = input_digests(named, inputs, folder)
    changed = {key: path for key, path in named.items() for stage in here if here[stage].get(key) != inputs[stage].get(key)}
    if changed:
        raise ConfigError(
            f"{in_words(changed)}: the point reads other files there than those that the sweep was planned with; copy those "
            "to this machine, or commit them if git has others, or start the sweep here"
        )


def _require_same(params: Params, folder: Path) -> None:
    """Raise `ConfigError` if the experiment in `folder` has other values, or there is something else."""
    path = folder / "params.yaml"
    if not folder.exists():
        return
    if not path.exists():
        raise ConfigError(f"{folder} is no experiment, but another folder; choose another name")
    if changed := differences(*(of.model_dump(mode="json") for of in (load_params(path), params))):
        raise ConfigError(
            f"the experiment in {folder} has other values: {'; '.join(changed[:MOST_SHOWN])}; choose another name, or delete "
            f"the folder (what it computed stays in DVC's cache): rm -r {folder}"
        )


def _copy_code(folder: Path, project: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source, target = project / name, folder / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)


def _write_values(values: Mapping[str, Any], params: Params, folder: Path, project: Path, *, scm: bool) -> None:
    (folder / "params.yaml").write_text(dump_yaml(values))
    write_local_config(project, folder, scm)
    link_inputs(params, folder, project)
