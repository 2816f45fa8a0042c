"""Lets several machines resume the same training in turn, through the bucket in SFD_CHECKPOINTS."""

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
"""Seconds that a download is retried if the storage does not answer."""
BESIDE = ("history.csv", "incidents.csv", RECORD)
"""Files of a resume folder; each checkpoint has a copy of them."""
SNAPSHOTS = "snapshots"
SNAPSHOT = re.compile(r"step-(\d+)\.safetensors")


@contextmanager
def shared_training(folder: Path, settle: Callable[[], bool]) -> Iterator[Callable[[], None]]:
    """Lease the training of a resume folder, download the progress of another machine, and mirror new checkpoints.

    Then `settle` is called; if it returns False, the training restarts, and the progress in the bucket is deleted. Yields a
    function to call before every checkpoint; it raises `LostError` if another machine took over the training. Without
    SFD_CHECKPOINTS only `settle` is called. Raises `ConfigError` if it is no S3 address, and `ResourceError` if another machine
    holds the lease or the storage rejects requests or does not answer, before any compute.
    """
    place = Place.of_environment()
    if place is None:
        settle()
        yield _unshared
        return
    storage = Storage(place.bucket, PATIENCE)
    prefix = place.key(folder.parent.name, folder.name)
    with Lease(storage, f"{prefix}/lease.json") as lease:
        _download_progress(storage, prefix, folder)
        if not settle():
            _delete(storage, prefix)
        with Mirror(storage, folder, prefix, files=f"{SNAPSHOTS}/*.safetensors"):
            yield lease.check


def _unshared() -> None:
    pass


def _download_progress(storage: Storage, prefix: str, folder: Path) -> None:
    """Bring the folder to the newest checkpoint, local or in the bucket, with its curves and snapshots.

    If interrupted, the next call downloads the rest.
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
        print(f"{folder}: resuming at step {step}, reached by another machine", file=sys.stderr)


def _delete(storage: Storage, prefix: str) -> None:
    """Delete the checkpoints and snapshots of a training in the bucket."""
    for name in complete_folders(storage, prefix):
        delete_folder(storage, f"{prefix}/{name}")
    for stored in list(storage.list(f"{prefix}/{SNAPSHOTS}/")):
        storage.delete(stored.key)
