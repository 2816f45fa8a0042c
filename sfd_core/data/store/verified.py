"""Remembers which files matched their hashes on this machine, so that they need not be read again at every start.

A file is trusted while its size, modification time and inode are the same as when its hash matched; copies are hashed again. As
in Git's index, a file modified less than two seconds before hashing is not recorded, because another change in the same clock
tick would not be visible. `SFD_VERIFY=always` trusts nothing. The records are in `.sfd/verified`, one file per folder; they can
be deleted at any time.
"""

import hashlib
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from sfd_core.host.errors import DataError
from sfd_core.host.paths import STATE, file_digest, read_json, write_json
from sfd_core.host.progress import with_progress
from sfd_core.host.settings import Settings

SHAPES_RESULTS = False

SETTLED_NS = 2_000_000_000
"""A modification time is trusted when it is at least this old; file systems have ticks of up to two seconds."""
SILENT_SECONDS = 2.0

Stamp = list[int]
"""Size, modification time in ns and inode of a file."""


def verify_files(folder: Path, hashes: Mapping[str, str]) -> None:
    """Compare files of `folder` (relative name -> SHA-256) with their hashes, skipping trusted files.

    Raises `DataError` for the first file that is missing or has other content, and `ConfigError` for an invalid value of
    `SFD_VERIFY`.
    """
    records = _Records(folder)
    stamps = {name: _stamp(folder / name) for name in hashes}
    unverified = {name: hashes[name] for name, stamp in stamps.items() if records.known.get(name) != [*stamp, hashes[name]]}
    if not unverified:
        return
    matching: dict[str, list[int | str]] = {}

    def compare(name: str) -> None:
        now = time.time_ns()
        _compare(folder / name, unverified[name])
        if _stamp(folder / name) == stamps[name] and now - stamps[name][1] > SETTLED_NS:
            matching[name] = [*stamps[name], unverified[name]]

    try:
        with ThreadPoolExecutor() as pool:  # one core per file
            compared = pool.map(compare, unverified)
            list(with_progress(compared, len(unverified), f"verify {folder}", "files", quick=SILENT_SECONDS))
    finally:
        records.add(matching)


def note_verified(folder: Path, hashes: Mapping[str, str]) -> None:
    """Record that files of `folder` (relative name -> SHA-256) currently match these hashes."""
    _Records(folder).add({name: [*_stamp(folder / name), sha256] for name, sha256 in hashes.items()})


def known_finite(content: str) -> bool:
    """Whether `note_finite` recorded this content hash."""
    return not Settings.read().verify and _finite_record(content).is_file()


def note_finite(content: str, what: str) -> None:
    """Record that a content hash stands for finite values; `what` is a description for people."""
    _write(_finite_record(content), {"finite": what})


class _Records:
    """Records of the files of one folder: relative name -> stamp and SHA-256."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder.absolute())
        self._path = STATE / "verified" / f"{hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:16]}.json"
        self.known: dict[str, Any] = {} if Settings.read().verify else self._files()

    def add(self, found: Mapping[str, list[int | str]]) -> None:
        """Add records to those that other processes wrote meanwhile, and delete records of folders that no longer exist."""
        if found:
            _write(self._path, {"folder": self._folder, "files": {**self._files(), **found}})
            for path in self._path.parent.glob("*.json"):
                if not Path(str(read_json(path).get("folder"))).is_dir():
                    path.unlink(missing_ok=True)

    def _files(self) -> dict[str, Any]:
        files = read_json(self._path).get("files")
        return files if isinstance(files, dict) else {}


def _compare(path: Path, sha256: str) -> None:
    found = file_digest(path)
    if found != sha256:
        raise DataError(
            f"{path} has sha256 {found[:12]}..., its manifest says {sha256[:12]}...: the file was changed or damaged after it "
            f"was written; delete {path.parent} and run its stage again"
        )


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing, but its manifest lists it; run its stage again") from error
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _finite_record(content: str) -> Path:
    return STATE / "verified" / "finite" / f"{content}.json"


def _write(path: Path, value: dict[str, Any]) -> None:
    # without a record, files are only verified again
    with suppress(OSError):
        for leftover in path.parent.glob(f".{path.name}.*.partial"):
            leftover.unlink(missing_ok=True)
        write_json(path, value)
