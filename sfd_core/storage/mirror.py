"""Mirrors folders of files that never change, such as checkpoints, to a bucket while a training writes them.

Keys are `<prefix>/<folder>/<file>` and, written last, `<prefix>/<folder>/MANIFEST.json` with names, sizes and SHA-256. A folder
without manifest is incomplete and counts as absent.
"""

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from sfd_core.host.errors import DataError, SFDError
from sfd_core.host.paths import atomic_dir, file_digest, link_or_copy
from sfd_core.host.settings import Settings
from sfd_core.storage.bucket import Storage, UnavailableError

MANIFEST = "MANIFEST.json"
STEPS = "step-*"
SECONDS_BETWEEN_LOOKS = 5.0
LONGEST_WAIT = 60.0
"""Seconds between attempts while the storage fails."""
SECONDS_AT_THE_END = 120.0
KEPT = 2
NICENESS = 15


@dataclass(frozen=True)
class Place:
    """A prefix of a bucket."""

    bucket: str
    prefix: str = ""

    @classmethod
    def of_environment(cls) -> "Place | None":
        """Return the place in SFD_CHECKPOINTS, or None if unset. Raises `ConfigError` if it is no S3 address."""
        address = urlsplit(Settings.read().checkpoints)
        return cls(address.netloc, address.path.strip("/")) if address.netloc else None

    def key(self, *parts: str) -> str:
        """Return a key below this place."""
        return "/".join(part for part in (self.prefix, *parts) if part)


def upload_file(storage: Storage, path: Path, key: str) -> None:
    """Upload a finished file unless the bucket already has it."""
    digest = file_digest(path)
    if storage.digest(key) != digest:
        storage.upload(path, key, digest=digest)


def upload_folder(storage: Storage, folder: Path, prefix: str) -> None:
    """Upload all files of a finished folder, skipping files that the bucket already has.

    Raises `DataError` if a file disappears meanwhile, and `ResourceError` if the storage fails. Call it again to continue.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    present = set(storage.list(f"{prefix}/"))
    if f"{prefix}/{MANIFEST}" in present:
        return
    entries: dict[str, dict[str, Any]] = {}
    for path in files:
        name = path.relative_to(folder).as_posix()
        try:
            entries[name] = {"size": path.stat().st_size, "sha256": file_digest(path)}
        except FileNotFoundError as error:
            raise DataError(f"{path} disappeared during its upload") from error
        if f"{prefix}/{name}" not in present or storage.digest(f"{prefix}/{name}") != entries[name]["sha256"]:
            storage.upload(path, f"{prefix}/{name}", digest=entries[name]["sha256"])
    storage.put(f"{prefix}/{MANIFEST}", json.dumps(entries, indent=2).encode())


def download_folder(storage: Storage, prefix: str, folder: Path) -> None:
    """Download a folder of `upload_folder` atomically.

    Raises `DataError` if there is no complete folder, or if a file does not match its manifest.
    """
    entries = _manifest(storage, prefix)
    with atomic_dir(folder) as temporary:
        for name, entry in entries.items():
            target = temporary / name
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise DataError(f"{prefix}/{MANIFEST} lists {name!r}, which is outside the folder; do not use it")
            storage.download(f"{prefix}/{name}", target, digest=entry["sha256"])


def delete_folder(storage: Storage, prefix: str) -> None:
    """Delete a folder, its manifest first, so that a partly deleted folder counts as absent."""
    storage.delete(f"{prefix}/{MANIFEST}")
    for key in list(storage.list(f"{prefix}/")):
        storage.delete(key)


def complete_folders(storage: Storage, prefix: str) -> list[str]:
    """Return the names of the complete folders below `prefix`, sorted."""
    ends = [key.removeprefix(f"{prefix}/") for key in storage.list(f"{prefix}/")]
    return sorted(str(PurePosixPath(end).parent) for end in ends if PurePosixPath(end).parts[1:] == (MANIFEST,))


def restore(storage: Storage, prefix: str, folder: Path) -> Path | None:
    """Download the newest complete step below `prefix` to `folder`, unless a local one is as new, and return its path.

    A damaged step is reported and skipped. Returns None if there is no step. Raises `ResourceError` if the storage fails.
    """
    local = _local_steps(folder)
    for name in reversed(complete_folders(storage, prefix)):
        if local and local[-1].name >= name:
            break
        try:
            download_folder(storage, f"{prefix}/{name}", folder / name)
        except DataError as error:
            print(f"warning: {error}; using the step before it", file=sys.stderr)
        else:
            return folder / name
    return local[-1] if local else None


class Mirror:
    """Uploads the steps of a folder in the background, the newest first; a context manager.

    Files that match a pattern of `files` in the folder are uploaded before later steps, which need them. It uses one thread of
    low priority and keeps one part of a file in memory. A step that is deleted meanwhile is uploaded whole. A failure is
    reported once and retried until it succeeds; it neither slows nor stops the training. Steps deleted from the folder are
    deleted from the bucket, except the newest `kept`. Steps of other machines are not deleted.
    """

    def __init__(
        self,
        storage: Storage,
        folder: Path,
        prefix: str,
        *,
        files: Sequence[str] = (),
        kept: int = KEPT,
        every: float = SECONDS_BETWEEN_LOOKS,
    ) -> None:
        self.storage, self.folder, self.prefix, self.files, self.kept, self.every = storage, folder, prefix, files, kept, every
        self._ended = threading.Event()
        self._done: set[str] = set()
        self._seen: set[str] = set()
        self._failure_reported = False
        self._thread = threading.Thread(target=self._run, name=f"mirror {folder}", daemon=True)

    def __enter__(self) -> Self:
        with suppress(UnavailableError):  # temporary, unlike a wrong key
            self.storage.check()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self, seconds: float = SECONDS_AT_THE_END) -> None:
        """Wait at most `seconds` for the last uploads."""
        self._ended.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            print(
                f"warning: {self.folder} is not completely uploaded to {self._name}; it is complete on this disk",
                file=sys.stderr,
            )

    def _run(self) -> None:
        """Upload new steps until the end, then once more."""
        with suppress(OSError, AttributeError):  # affects this thread only; not on every system
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        wait = self.every
        while not self._ended.wait(wait):
            wait = self.every if self._try(self._mirror_once) else min(2 * wait, LONGEST_WAIT)
        while not self._try(self._mirror_once):
            time.sleep(self.every)

    def _mirror_once(self) -> None:
        """Upload missing steps, the newest first, then delete steps that are gone."""
        while missing := [step for step in _local_steps(self.folder) if step.name not in self._done]:
            newest = missing[-1]
            self._seen.add(newest.name)
            self._upload_files()
            try:
                with _linked(newest) as whole:
                    upload_folder(self.storage, whole, f"{self.prefix}/{newest.name}")
            except (DataError, OSError):
                if newest.exists():
                    raise
            self._done.add(newest.name)
        self._delete_gone()

    def _upload_files(self) -> None:
        for path in sorted(path for pattern in self.files for path in self.folder.glob(pattern)):
            name = path.relative_to(self.folder).as_posix()
            if name not in self._done:
                try:
                    upload_file(self.storage, path, f"{self.prefix}/{name}")
                except (DataError, FileNotFoundError):
                    if path.exists():
                        raise
                self._done.add(name)

    def _delete_gone(self) -> None:
        gone = self._seen - {step.name for step in _local_steps(self.folder)}
        if gone:
            present = complete_folders(self.storage, self.prefix)
            for name in sorted(gone - set(present[-self.kept :])):
                delete_folder(self.storage, f"{self.prefix}/{name}")
                self._seen.discard(name)

    def _try(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - no failure of the storage may stop the training
            if not self._failure_reported:
                self._failure_reported = True
                reason = str(error) if isinstance(error, SFDError) else f"{type(error).__name__}: {error}"
                print(f"warning: {self.folder} is not mirrored: {reason}; trying again", file=sys.stderr)
            return False
        if self._failure_reported:
            self._failure_reported = False
            print(f"{self.folder} is mirrored to {self._name} again", file=sys.stderr)
        return True

    @property
    def _name(self) -> str:
        return f"s3://{self.storage.bucket}/{self.prefix}"


@contextmanager
def _linked(step: Path) -> Iterator[Path]:
    """Give the files of a step in a folder that stays while the step is deleted."""
    links = step.parent / ".mirror.partial" / step.name
    shutil.rmtree(links.parent, ignore_errors=True)
    try:
        shutil.copytree(step, links, copy_function=link_or_copy)
        yield links
    finally:
        shutil.rmtree(links.parent, ignore_errors=True)


def _manifest(storage: Storage, prefix: str) -> dict[str, dict[str, Any]]:
    try:
        entries = json.loads(storage.get(f"{prefix}/{MANIFEST}").data)
        if not all("sha256" in entry for entry in entries.values()):
            raise ValueError("an entry lacks its hash")
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{prefix}/{MANIFEST} is damaged ({error}); delete the folder there") from error
    return dict(entries)


def _local_steps(folder: Path) -> list[Path]:
    """Return the complete steps in a folder, the newest last; unfinished ones have another name."""
    return sorted(path for path in folder.glob(STEPS) if path.is_dir())
