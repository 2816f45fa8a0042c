"""Work that a killed program left to be continued, and the code that did it.

A folder of such work is keyed by parameters and inputs. The code lies beside the work, in `code.json`: other code neither
continues it silently nor throws away more than a few minutes of it.
"""

import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Self

from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.locks import locked
from sfd_core.host.paths import STATE, atomic_dir, replace_dir, write_json

RECORD, LOCK = "code.json", "lock"
SECONDS_TO_REPEAT = 600.0
"""Work that is repeated without asking, if other code did it or a kill hits between its end and DVC's record."""
HIDDEN = ".finished"
MOST_NAMED = 8


@dataclass(frozen=True)
class Code:
    """The code that makes something; see `experiment.code`."""

    hash: str
    modules: Mapping[str, str] = field(default_factory=dict)
    """Module, or file beside modules -> hash of its meaning."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Distribution -> version."""

    def differences(self, other: Self) -> list[str]:
        """Return in words the modules and libraries in which `other`, which came later, differs."""
        names = sorted(self.modules.keys() | other.modules.keys())
        changed = [name for name in names if self.modules.get(name) != other.modules.get(name)]
        versions = sorted(self.libraries.keys() | other.libraries.keys())
        return changed + [
            f"{name} {self.libraries.get(name, 'unused')} -> {other.libraries.get(name, 'unused')}"
            for name in versions
            if self.libraries.get(name) != other.libraries.get(name)
        ]


UNKNOWN_CODE = Code("")
"""The code where nobody asks which."""


def resume_dir(stage: str, key: str) -> Path:
    """Return the folder for the resumable work of a stage whose parameters and inputs hash to `key`."""
    return STATE / "resume" / stage / key


def settle(folder: Path, code: Code, seconds: float | None = None) -> None:
    """Decide whether `code` resumes the work in `folder` or starts again, and record it there.

    The caller holds the folder. `seconds` is how long the work took, 0 if nothing of it can be resumed; None takes it from the
    times of the files, of which the record is the first. Work of other code that took up to ten minutes is deleted. For longer
    work SFD_RESUME decides: with `restart` it is moved to `.sfd/kept`. Raises `ConfigError` that names what differs and both
    commands if it is not set.
    """
    before = codes_of(folder)
    work = [path for path in folder.iterdir() if path.name not in {RECORD, LOCK}] if folder.is_dir() else []
    if not before or not work or before[-1].hash == code.hash:
        if not work or before[-1:] != [code]:
            _record(folder, [*before[:-1], code] if work else [code])
        return
    took = _seconds(work, folder / RECORD) if seconds is None else seconds
    differing = before[-1].differences(code)
    changed = ", ".join(differing[:MOST_NAMED]) + (f" and {len(differing) - MOST_NAMED} more" * (len(differing) > MOST_NAMED))
    choice = _choice(folder, took, changed)
    if choice == "continue":
        _record(folder, [*before, code])
        return
    if choice == "restart":
        kept = _free(STATE / "kept" / folder.parent.name / f"{folder.name}-{before[-1].hash[:8]}")
        kept.mkdir(parents=True)
        for path in [*work, folder / RECORD]:
            shutil.move(path, kept / path.name)
        print(f"{folder}: starting again with the present code; the old work is kept in {kept}", file=sys.stderr)
    else:
        for path in work:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if took:
            print(f"{folder}: starting again, other code did {took:.0f} s of work there ({changed})", file=sys.stderr)
    _record(folder, [code])


def codes_of(folder: Path) -> list[Code]:
    """Return the codes that did the work in a folder, the first one first. Raises `DataError` for a damaged record."""
    path = folder / RECORD
    try:
        return [Code(**code) for code in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); delete {folder} to start again") from error


def mixed_codes(folder: Path) -> dict[str, list[str]]:
    """Return, for the record of a result, the hashes of the codes that did the work in a folder; nothing if it was one."""
    codes = codes_of(folder)
    return {"codes": [code.hash for code in codes]} if len(codes) > 1 else {}


def put_away(folder: Path, result: Path) -> None:
    """Hide finished work until DVC has recorded its result, of which `result` is a file: after a kill, DVC deletes others."""
    with result.open("rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest()
    folder.replace(folder.with_name(f".{folder.name}.{digest}{HIDDEN}"))


def take_back(folder: Path) -> None:
    """Return hidden work to its folder, where nothing newer is: its result was lost, and comes of it again at once."""
    for hidden in folder.parent.glob(f".{folder.name}.*{HIDDEN}"):
        if not folder.exists():
            hidden.replace(folder)


def drop_recorded(lock: Path) -> None:
    """Delete hidden work whose results the file `lock` of DVC names."""
    hidden = list((STATE / "resume").glob(f"*/.*{HIDDEN}"))
    recorded = lock.read_text() if hidden and lock.is_file() else ""
    for folder in hidden:
        if folder.name.split(".")[-2] in recorded:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def held(folder: Path, purpose: str) -> Iterator[None]:
    """Hold a folder of resumable work for this process. Raises `BusyError` if another process holds it."""
    busy = f"another process is {purpose} in {folder}; wait for it or stop it"
    with locked(folder / LOCK, busy, json.dumps(sys.argv)):
        yield


def command_of(folder: Path) -> list[str]:
    """Return the command line of the process that works or last worked in a folder; nothing if that is not known."""
    try:
        return list(json.loads((folder / LOCK).read_text()))
    except (OSError, ValueError):
        return []


@contextmanager
def resumable_dir(
    path: Path, work: Path, code: Code = UNKNOWN_CODE, check: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """Give a folder in `work` with what an interrupted run left there; then it replaces `path` and `work` is deleted.

    What that run was just writing with `atomic_path` or `atomic_dir` is deleted.

    Whatever ends the block otherwise, a kill included, leaves `work` as it is, so name it after the parameters and inputs of
    the result (`resume_dir`). `check` is called once it is settled which work is resumed.

    Raises `BusyError` if another process holds it, and what `settle` raises.
    """
    folder = work / "out"
    with held(work, f"writing {path}"):
        settle(work, code)
        check()
        folder.mkdir(exist_ok=True)
        for leftover in list(work.rglob(".*.partial")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        yield folder
        path.parent.mkdir(parents=True, exist_ok=True)
        if folder.stat().st_dev == path.parent.stat().st_dev:
            replace_dir(folder, path)
        else:
            with atomic_dir(path) as copy:
                shutil.copytree(folder, copy, dirs_exist_ok=True)
        shutil.rmtree(work)


def _choice(folder: Path, took: float, changed: str) -> str:
    """Return `continue`, `restart`, or nothing for work that is short enough to be repeated."""
    from sfd_core.host.settings import Settings

    choice = Settings.read().resume
    if took <= SECONDS_TO_REPEAT:
        return "continue" if choice == "continue" and took else ""
    if choice is None:
        command = _command()
        raise ConfigError(
            f"other code did {took / 60:.0f} minutes of this work, in {folder}: {changed} differ.\n"
            f"To resume it, as a result of more than one code: SFD_RESUME=continue {command}\n"
            f"To start again and keep the old work:            SFD_RESUME=restart {command}"
        )
    return choice


def _command() -> str:
    """Return what the user runs again: this `sfd` command, or the pipeline that started this stage."""
    return shlex.join(["sfd", *sys.argv[1:]]) if Path(sys.argv[0]).stem in {"sfd", "__main__"} else "dvc repro"


def _free(path: Path) -> Path:
    """Return `path`, or the first of its numbered names that does not exist."""
    names = (path if number == 1 else path.with_name(f"{path.name}-{number}") for number in count(1))
    return next(name for name in names if not name.exists())


def _seconds(work: Sequence[Path], record: Path) -> float:
    """Return the time from the record, or the first change of a file of some work, to the last one."""
    files = [file for path in work for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    times = [file.stat().st_mtime for file in files]
    return max(times) - min(*times, record.stat().st_mtime) if times else 0.0


def _record(folder: Path, codes: Sequence[Code]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, [asdict(code) for code in codes])
