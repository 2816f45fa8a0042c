"""A training that several machines may continue in turn, through the bucket that SFD_CHECKPOINTS names."""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sfd_core.host.resume import RECORD
from sfd_core.storage.bucket import Storage
from sfd_core.storage.lease import Lease
from sfd_core.storage.mirror import Mirror, Place, complete_folders, delete_folder, restore

PATIENCE = 60.0
"""Seconds that a download waits for a storage that does not answer."""
BESIDE = ("history.csv", "incidents.csv", RECORD)
"""Files of a resume folder that each checkpoint has a copy of."""
SNAPSHOTS = "snapshots"
SNAPSHOT = re.compile(r"step-(\d+)\.safetensors")


@contextmanager
def shared_training(folder: Path, settle: Callable[[], bool]) -> Iterator[Callable[[], None]]:
    """Claim the training of a resume folder, fetch what another machine did of it, and mirror what this one does.

    `settle` says, once all of it is in the folder, whether the training goes on with it; if not, the bucket's copy is deleted.
    Yields what the training calls before every checkpoint; it raises `LostError` once another machine took the training over.
    Without SFD_CHECKPOINTS only `settle` is called. Raises `ConfigError` if that is no address, `ResourceError` if another
    machine runs this training or the storage refuses or does not answer, before any compute, and what `settle` raises.
    """
    place = Place.of_environment()
    if place is None:
        settle()
        yield _nobody_else
        return
    storage = Storage(place.bucket, PATIENCE)
    prefix = place.key(folder.parent.name, folder.name)
    with Lease(storage, f"{prefix}/lease.json") as lease:
        _fetch(storage, prefix, folder)
        if not settle():
            _delete(storage, prefix)
        with Mirror(storage, folder, prefix, files=f"{SNAPSHOTS}/*.safetensors"):
            yield lease.check


def _nobody_else() -> None:
    pass


def _fetch(storage: Storage, prefix: str, folder: Path) -> None:
    """Bring the folder to the newest checkpoint that is anywhere, with its curve and the snapshots up to it.

    Broken off, it fetches the rest when it is called again.
    """
    here = {path.name for path in folder.glob("step-*")}
    newest = restore(storage, prefix, folder)
    if newest is None:
        return
    step = int(newest.name.removeprefix("step-"))
    for stored in storage.list(f"{prefix}/{SNAPSHOTS}/"):
        name = stored.key.rpartition("/")[2]
        match = SNAPSHOT.fullmatch(name)
        if match and int(match[1]) <= step and not (folder / SNAPSHOTS / name).exists():
            storage.download(stored.key, folder / SNAPSHOTS / name)
    for name in BESIDE:
        if (newest / name).exists() and (newest.name not in here or not (folder / name).exists()):
            shutil.copyfile(newest / name, folder / name)
    if newest.name not in here:
        print(f"{folder}: continues what another machine did, up to step {step}", file=sys.stderr)


def _delete(storage: Storage, prefix: str) -> None:
    """Delete all steps and snapshots of a training in the bucket."""
    for name in complete_folders(storage, prefix):
        delete_folder(storage, f"{prefix}/{name}")
    for stored in list(storage.list(f"{prefix}/{SNAPSHOTS}/")):
        storage.delete(stored.key)
