"""Lets several machines resume the same training in turn, through the bucket in SFD_CHECKPOINTS."""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sfd_core.host.errors import ResourceError
from sfd_core.host.resume import RECORD, Code, codes_of
from sfd_core.storage.bucket import Storage
from sfd_core.storage.lease import Lease
from sfd_core.storage.mirror import Mirror, Place, restore

PATIENCE = 60.0
"""Seconds that a download is retried if the storage does not answer."""
BESIDE = ("history.csv", "incidents.csv", RECORD)
"""Files of a resume folder; each checkpoint has a copy of them."""
WEIGHTS = ("snapshots", "averages")
"""Folders of what a training keeps besides its checkpoints, in files `step-NUMBER*.safetensors`."""
FINISHED = "finished"
KEPT = re.compile(r"step-(\d+).*\.safetensors")


@contextmanager
def shared_training(
    folder: Path, code: Code, settle: Callable[[], None], drop_damaged: Callable[[], None]
) -> Iterator[Callable[[], None]]:
    """Lease the training of a resume folder, download the progress of another machine, and mirror new checkpoints.

    Each code that began the training has its own progress in the bucket. That of the folder is downloaded, or of `code`, or
    else an unfinished one, once `drop_damaged` has left only whole checkpoints in the folder; then `settle` decides whether the
    training resumes it or starts again, with what `code` has done elsewhere. Yields a function to call before every
    checkpoint; it raises `LostError` if another machine took over the training. Without SFD_CHECKPOINTS only `settle` is
    called. Raises `ConfigError` if it is no S3 address, `BusyError` if another machine holds the lease, and `ResourceError` if
    the storage rejects requests or does not answer, before any compute.
    """
    place = Place.of_environment()
    if place is None:
        settle()
        yield _unshared
        return
    storage = Storage(place.bucket, PATIENCE)
    prefix = place.key(folder.parent.name, folder.name)
    with Lease(storage, f"{prefix}/lease.json") as lease:
        drop_damaged()
        asked = f"{prefix}/{_progress_of(storage, prefix, folder, code)}"
        _download_progress(storage, asked, folder)
        settle()
        own = f"{prefix}/{_name(codes_of(folder)[0])}"
        if own != asked:
            _download_progress(storage, own, folder)
            settle()
        with Mirror(storage, folder, own, files=[f"{kind}/*.safetensors" for kind in WEIGHTS]):
            yield lease.check
        try:
            storage.put(f"{own}/{FINISHED}", b"")
        except ResourceError as error:
            print(f"warning: the training is finished, but the storage was not told: {error}", file=sys.stderr)


def _unshared() -> None:
    pass


def _download_progress(storage: Storage, prefix: str, folder: Path) -> None:
    """Bring the folder to the newest checkpoint, local or in the bucket, with its curves, snapshots and averages.

    If interrupted, the next call downloads the rest.
    """
    here = {path.name for path in folder.glob("step-*")}
    newest = restore(storage, prefix, folder)
    if newest is None:
        return
    step = int(newest.name.removeprefix("step-"))
    for kind in WEIGHTS:
        for key in storage.list(f"{prefix}/{kind}/"):
            name = key.rpartition("/")[2]
            match = KEPT.fullmatch(name)
            if match and int(match[1]) <= step and not (folder / kind / name).exists():
                storage.download(key, folder / kind / name)
    for name in BESIDE:
        if (newest / name).exists() and (newest.name not in here or not (folder / name).exists()):
            shutil.copyfile(newest / name, folder / name)
    if newest.name not in here:
        print(f"{folder}: resuming at step {step}, reached by another machine", file=sys.stderr)


def _progress_of(storage: Storage, prefix: str, folder: Path, code: Code) -> str:
    """Return whose progress the bucket is asked for: that of the folder's code, of `code`, or the furthest unfinished one."""
    if local := codes_of(folder):
        return _name(local[0])
    keys = [key.removeprefix(f"{prefix}/").split("/") for key in storage.list(f"{prefix}/")]
    finished = {parts[0] for parts in keys if parts[1:] == [FINISHED]}
    steps = {
        parts[0]: parts[1] for parts in keys if len(parts) > 2 and parts[1].startswith("step-") and parts[0] not in finished
    }
    own = _name(code)
    return own if own in finished | set(steps) or not steps else max(steps, key=lambda name: steps[name])


def _name(code: Code) -> str:
    return code.hash[:8] or "unknown"
