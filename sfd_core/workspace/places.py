"""The folder with results that a name means: a project, an experiment, a variant of the project, or a Git ref."""

import copy
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sfd_core.experiment.drawable import require_drawable
from sfd_core.experiment.inputs import input_digests, missing_inputs, named_inputs, recorded_digests
from sfd_core.experiment.params import LATENTS, Params, load_params, parse_params
from sfd_core.experiment.values import differences, set_value
from sfd_core.host.errors import DataError
from sfd_core.host.paths import OUTPUTS, STATE, atomic_dir, stage_dir
from sfd_core.host.resume import MOST_NAMED
from sfd_core.workspace import git
from sfd_core.workspace.dvc import LOCK, LOGS, Place, ProgramError, environment, locked_stages, write_local_config

EXPERIMENTS = STATE / "experiments"
SHOWN = STATE / "shown"
"""Results of Git refs that were looked at."""
PARAMS = "params.yaml"
SHARED = (*LATENTS, "schedule", "reference")
"""Stages that all variants share."""


def look_at_inputs(place: Place) -> None:
    """Run stage `inputs` where images or weights are no longer those that it recorded, which DVC cannot know.

    Where it recorded none, DVC runs it, as it restores a stage whose output persists never from the run-cache. What it once
    recorded of files that are gone is fetched, so that their results are restored, too. Raises what `require_drawable` raises.
    """
    params = load_params(place.folder / PARAMS)
    require_drawable(params)
    if not (place.folder / stage_dir("inputs")).is_dir():
        if not missing_inputs(params, place.folder) or "inputs" not in locked_stages(place.folder):
            return
        with suppress(ProgramError):
            place.restore("inputs")
    digests = input_digests(named_inputs(params, place.folder), project=place.folder)
    if any(found != recorded_digests(stage, place.folder) for stage, found in digests.items()):
        place.dvc("repro", "--force", "inputs")


def find_place(name: str, project: Path = Path()) -> tuple[Path, str | None]:
    """Return the folder that holds `outputs` of what `name` means, and the variant that it names, if it names one.

    It is a folder with a project, else an experiment, else a variant of the project, else a Git ref; `NAME@VARIANT` is one
    variant of it. Results of a Git ref, and of an experiment whose outputs were deleted, are restored from DVC's cache or its
    remote. Raises `DataError` if nothing has the name, or both lack the results.
    """
    before, at, after = name.rpartition("@")
    is_whole = not at or after.startswith("{") or (project / name / PARAMS).is_file()
    base, variant = (name, None) if is_whole else (before, after)
    for folder in (project / base, project / EXPERIMENTS / base):
        if (folder / PARAMS).is_file():
            if folder.parent == project / EXPERIMENTS and not (folder / OUTPUTS).exists() and locked_stages(folder):
                _restore(folder, project, base)
            return folder, variant
    known = list(load_params(project / PARAMS).variants)
    if variant is None and base in known:
        return project, base
    commit = git.commit_of(project, base)
    if commit is None:
        experiments = [path.parent.name for path in sorted((project / EXPERIMENTS).glob(f"*/{PARAMS}"))]
        raise DataError(
            f"{base!r} is neither a project nor a Git ref, nor one of the experiments {', '.join(experiments) or '(none)'}, "
            f"nor one of the variants {', '.join(known)}"
        )
    return _restored(project, base, commit), variant


def recorded_params(place: Path, variant: str | None = None) -> Params:
    """Return the parameters that made the results in a folder, or those of one variant, as far as its dvc.lock has them.

    Where params.yaml was edited since, or variants were made with different values, stderr says so: what was not run is shown
    as nobody's. Raises `ConfigError` for a file that cannot be used.
    """
    params, stages = load_params(place / PARAMS), locked_stages(place)
    variants = [variant] if variant else params.active
    made = _made(place, params, stages, variants)
    if edited := differences(*(of.model_dump(mode="json") for of in (params, made))):
        print(
            f"{place / PARAMS} was edited since: {', '.join(edited[:MOST_NAMED])}{' and more' * (len(edited) > MOST_NAMED)}; "
            "results are told with the values that made them; `make repro` brings them up to date",
            file=sys.stderr,
        )
    used: dict[str, list[Any]] = {}
    for key, value in _recorded(stages, _stages_of(variants)):
        if not key.startswith(("report.", "variants.")):  # how it is drawn, and their own
            used.setdefault(key, []).append(value)
    if apart := [key for key, found in used.items() if any(value != found[0] for value in found)]:
        print(
            f"{place}: the variants were made with different values of {', '.join(apart)}, so their results do not compare; "
            "`make repro` makes them alike",
            file=sys.stderr,
        )
    return made


def recorded_variants(place: Path) -> dict[str, Params]:
    """Return `recorded_params` of each variant; stderr says nothing."""
    params, stages = load_params(place / PARAMS), locked_stages(place)
    return {variant: _made(place, params, stages, [variant]) for variant in params.variants}


def _made(place: Path, params: Params, stages: Mapping[str, Any], variants: Iterable[str]) -> Params:
    values = copy.deepcopy(params.given())
    for key, value in _recorded(stages, [*SHARED, *_stages_of(variants)]):
        set_value(values, key, value)
    return parse_params(values, f"what {place / LOCK} records")


def _stages_of(variants: Iterable[str]) -> list[str]:
    return [f"{stage}@{variant}" for stage in ("train", "evaluate") for variant in variants]


def _recorded(stages: Mapping[str, Any], names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values that dvc.lock has of stages."""
    for name in names:
        yield from stages.get(name, {}).get("params", {}).get(PARAMS, {}).items()


def _restored(project: Path, ref: str, commit: str) -> Path:
    folder = project / SHOWN / commit
    if folder.is_dir():
        return folder
    with atomic_dir(folder) as place:
        for name in (PARAMS, "dvc.yaml", LOCK):
            (place / name).write_text(git.file_of(project, commit, name) + "\n")
        write_local_config(project, place, scm=False)
        _restore(place, project, ref)
    return folder


def _restore(place: Path, project: Path, name: str) -> None:
    """Bring back the outputs of a folder that `sfd compare` shows, those that its dvc.lock has."""
    locked = locked_stages(place)
    active = load_params(place / PARAMS).active
    restoring = Place(place, environment(project), log=project / LOGS / "shown.log")
    try:
        asked = [stage for stage in ("code", "inputs", "schedule", "reference", *_stages_of(active)) if stage in locked]
        restoring.restore(*asked)
    except ProgramError as error:
        raise DataError(f"the results of {name} are neither in DVC's cache nor in its remote; run it again: {error}") from error
