"""What of a clone can be deleted because it can be made again, and what is kept."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sfd_core.host.errors import ConfigError
from sfd_core.host.locks import is_held
from sfd_core.host.paths import OUTPUTS, REPORT, STATE
from sfd_core.host.resume import LOCK
from sfd_core.workspace import git
from sfd_core.workspace.dvc import LOGS, Place, ProgramError, environment, locked_stages, running_stages
from sfd_core.workspace.places import EXPERIMENTS, SHOWN

RESUME = STATE / "resume"
KEPT = (RESUME, STATE / "checkpoints", STATE / "kept")
"""Unfinished work, checkpoints of finished trainings that `engine` keeps, and work that was put aside."""
IN_WORK = "in work"
REMADE = (OUTPUTS, REPORT, STATE / "verified", SHOWN)


@dataclass(frozen=True)
class Item:
    """A file or folder, and the bytes that go with it."""

    path: Path
    why: str = ""
    """Why it is kept; empty if it can be deleted."""
    place: Path | None = None
    """The project, experiment or point that needs it while a process works there; None if none does."""

    @property
    def size(self) -> int:
        """Bytes of files that lie nowhere else; a link to DVC's cache frees nothing."""
        files = (file.lstat() for file in [self.path, *self.path.rglob("*")] if file.is_symlink() or file.is_file())
        return sum(file.st_size for file in files if file.st_nlink == 1)

    def delete(self) -> bool:
        """Delete it, unless a process works there by now; return whether it is gone."""
        if self.place is not None and _in_work(self.place):
            return False
        shutil.rmtree(self.path)
        return True


def find_clearable(project: Path, checkpoints: bool) -> list[Item]:
    """Return what lies in a clone beside its code; `checkpoints`: unfinished and kept work may go, too.

    Kept is what a process works in, outputs that DVC's cache does not hold, and the values, code and dvc.lock of experiments.
    Raises `ConfigError` where there is no project.
    """
    if not (project / "dvc.yaml").is_file():
        raise ConfigError(f"{project.absolute()} is no project, for it has no dvc.yaml; run this in the project folder")
    items = list(_of_place(project, project, [*REMADE, *KEPT], checkpoints))
    for place in _places(project / EXPERIMENTS):
        items += _of_place(place, project, [*REMADE, *KEPT], checkpoints)
    for place in _places(project / git.POINTS):
        reasons = (item.why for item in _of_place(place, project, [OUTPUTS, *KEPT], checkpoints) if item.why)
        items.append(Item(place, IN_WORK if _in_work(place) else next(reasons, ""), place))
    return items


def _places(folder: Path) -> list[Path]:
    """Return the experiments or points in a folder; beside each is its lock, beside inputs that are linked here is none."""
    places = (lock.with_suffix("") for lock in sorted(folder.glob("*.lock")))
    return [place for place in places if place.is_dir() and not place.is_symlink()]


def _in_work(place: Path) -> bool:
    """Whether a process works in a project, an experiment or a point."""
    locks = [place.parent / f"{place.name}.lock", *(place / RESUME).rglob(LOCK)]
    return any(map(is_held, locks)) or bool(running_stages(place))


def _of_place(place: Path, project: Path, names: list[Path], checkpoints: bool) -> Iterator[Item]:
    in_work = _in_work(place)
    there = [name for name in names if any(file.is_file() for file in (place / name).rglob("*"))]
    for name in there:
        item = Item(place / name, place=None if name in (REPORT, SHOWN) else place)
        if in_work and item.place:
            yield replace(item, why=IN_WORK)
        elif name in KEPT and not checkpoints:
            yield replace(item, why="holds checkpoints; --checkpoints deletes it, too")
        elif name == OUTPUTS and (own := _undeclared(place)):
            yield replace(item, why=f"{own[0]}{' and more' * (len(own) > 1)} is no stage's output; move it to another place")
        elif name == OUTPUTS and (lost := _outside_cache(place, project)):
            yield replace(item, why=f"DVC's cache lacks {lost[0]}{' and more' * (len(lost) > 1)}; `dvc commit` puts it there")
        else:
            yield item


def _undeclared(place: Path) -> list[str]:
    """Return the files in the outputs that no stage wrote, hidden ones left out; nothing can make them again."""
    stages = locked_stages(place)
    if not stages:
        return []
    declared = {Path(out["path"]) for stage in stages.values() for out in stage.get("outs", [])}
    files = (file.relative_to(place) for file in sorted((place / OUTPUTS).rglob("*")) if file.is_file())
    shown = (file for file in files if not any(part.startswith(".") for part in file.parts))
    return [str(file) for file in shown if declared.isdisjoint((file, *file.parents))]


def _outside_cache(place: Path, project: Path) -> list[str]:
    """Return the outputs of a project or an experiment that its cache could not restore."""
    asked = Place(place, environment(project), log=project / LOGS / "clean.log")
    try:
        told = asked.dvc("data", "status", "--json")
    except ProgramError:
        return [str(place / OUTPUTS)]
    status = json.loads(told[told.index("{") :])
    changed = status.get("uncommitted", {})
    return [*status.get("not_in_cache", []), *changed.get("modified", []), *changed.get("added", [])]
