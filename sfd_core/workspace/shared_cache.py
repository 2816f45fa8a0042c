"""DVC's command line for folders that share one cache and one remote, such as experiments and the points of a sweep.

    python -P sfd_core/workspace/shared_cache.py ARGUMENTS... [--then ARGUMENTS...]

The commands run in one process, each after the success of the one before. A command that talks to a remote that does not answer
tries again.

DVC takes the newest file in a folder of its run-cache for a result, even one that another process is still writing. That
process then fails, because the file was deleted as damaged, or this one, because the file got its final name. Here reading and
writing wait for each other.

DVC fetches and pushes the whole run-cache, which grows with every result. Here a stage asks the remote for its own results, and
takes these before those of this machine; a push sends those of the folder's stages that the remote lacks.

DVC writes dvc.lock in place, so a kill at that moment leaves it empty, and no command of DVC works any more. Here it is written
whole or not at all, and an empty one is removed: the results come back from the run-cache.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from sfd_core.host.locks import locked
from sfd_core.host.paths import atomic_path

THEN = "--then"
WRITING_SECONDS = 2.0
"""A dvc.lock that is empty for longer is not being written by another DVC."""
RETRIES = (5.0, 20.0, 60.0, 300.0, 600.0)
"""Seconds before each new attempt of what only the network can fail, some minutes beside the training that is at stake."""
T = TypeVar("T")


class RemoteRunCache:
    """What the default remote has of the run-cache, asked for one stage at a time."""

    def __init__(self) -> None:
        self._odb: Any = None
        """The remote; None until a command uses it."""
        self._names: dict[str, set[str]] = {}
        """Key of a stage -> names of its results on the remote."""

    def open(self, cache: Any) -> None:
        """Use the remote from now on. Raises `RunCacheNotSupported` if there is none, or one that can have no run-cache."""
        from dvc.config import RemoteConfigError
        from dvc.fs import HTTPFileSystem
        from dvc.stage.cache import RunCacheNotSupported

        try:
            odb = cache.repo.cloud.get_remote_odb(None, "run-cache", hash_name="md5-dos2unix")
        except RemoteConfigError as error:
            raise RunCacheNotSupported(error) from error
        if isinstance(odb.fs, HTTPFileSystem):
            raise RunCacheNotSupported(f"run-cache is not supported for http filesystem: {odb.path}")
        self._odb = odb

    def names(self, key: str) -> set[str]:
        """Return the names of a stage's results on the remote, none if no command uses it."""
        if self._odb is not None and key not in self._names:
            found = _retried(lambda: list(self._odb.fs.find(self._path(key))))
            self._names[key] = {path.rpartition("/")[2] for path in found}
        return self._names.get(key, set())

    def fetch(self, cache: Any, key: str) -> None:
        """Bring the results of a stage that the remote has, as this machine's newest."""
        for name in sorted(self.names(key)):
            path = Path(cache._get_cache_path(key, name))
            if path.exists():
                os.utime(path)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                _retried(lambda: self._odb.fs.get_file(self._path(key, name), str(path)))  # noqa: B023 - called at once

    def push(self, cache: Any) -> list[tuple[str, str]]:
        """Send the results of all stages of the folder that the remote lacks; return their keys and names."""
        from dvc.stage.cache import _get_cache_hash
        from dvc.stage.serialize import to_single_stage_lockfile

        self.open(cache)
        finished = [stage for stage in cache.repo.index.stages if all(file.hash_info for file in (*stage.deps, *stage.outs))]
        sent = []
        for key in {_get_cache_hash(to_single_stage_lockfile(stage), key=True) for stage in finished}:
            folder = Path(cache._get_cache_dir(key))
            here = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            for name in sorted(here - self.names(key) if here else here):
                self._odb.fs.put_file(str(folder / name), self._path(key, name))
                self._names[key].add(name)
                sent.append((key, name))
        return sent

    def _path(self, key: str, *name: str) -> str:
        return str(self._odb.fs.join(self._odb.path, "runs", key[:2], key, *name))


def main() -> None:
    """Run the commands of the command line."""
    from dvc.stage.cache import StageCache, _get_stage_hash
    from dvc.utils.serialize import _common

    remote = RemoteRunCache()
    load, save = StageCache._load, StageCache.save

    def load_shared(cache: Any, stage: Any) -> Any:
        key = _get_stage_hash(stage)
        remote.names(key)  # may take a while
        with _alone(cache):
            remote.fetch(cache, key)
            return load(cache, stage)

    def save_alone(cache: Any, stage: Any) -> None:
        with _alone(cache):
            save(cache, stage)

    StageCache._load, StageCache.save = load_shared, save_alone
    _common._dump_data = write_whole
    remove_empty(Path("dvc.lock"))
    StageCache.pull = lambda cache, *_: remote.open(cache)
    StageCache.push = lambda cache, *_: remote.push(cache)
    commands: list[list[str]] = [[]]
    for word in sys.argv[1:]:
        if word == THEN:
            commands.append([])
        else:
            commands[-1].append(word)
    for command in commands:
        if code := _run(command):
            sys.exit(code)


def write_whole(path: str, data: Any, dumper: Callable[..., None], fs: Any = None) -> None:  # noqa: ARG001 - DVC passes it
    """Write a file of DVC so that a kill leaves the old one or the new one."""
    with atomic_path(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as file:
        dumper(data, file)


def remove_empty(lock: Path) -> None:
    """Remove the dvc.lock that a killed DVC left empty."""
    if lock.is_file() and not lock.stat().st_size:
        time.sleep(WRITING_SECONDS)
        if lock.stat().st_size:
            return
        lock.unlink()
        print(f"{lock} was empty, as a killed DVC leaves it; results come back from DVC's cache", file=sys.stderr, flush=True)


def _run(command: list[str]) -> int:
    from dvc import cli

    code: int = cli.main(command)
    for seconds in RETRIES if "push" in command else ():
        if code:
            _wait(seconds, "not everything was pushed")
            code = cli.main(command)
    return code


def _retried(action: Callable[[], T]) -> T:
    for seconds in RETRIES:
        try:
            return action()
        except Exception as error:  # noqa: BLE001 - every kind of remote has its own
            _wait(seconds, f"the DVC remote does not answer: {error}")
    return action()


def _wait(seconds: float, why: str) -> None:
    print(f"{why}; trying again in {seconds:.0f} s", file=sys.stderr, flush=True)
    time.sleep(seconds)


def _alone(cache: Any) -> AbstractContextManager[int]:
    """Lock the run-cache, which several folders share."""
    return locked(Path(cache.cache_dir).with_name("runs.lock"))


if __name__ == "__main__":
    main()
