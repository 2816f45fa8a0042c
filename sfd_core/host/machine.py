"""This machine as a worker: its name, how many trainings it runs at once, and which GPUs each of them gets."""

import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sfd_core.host.errors import ConfigError
from sfd_core.host.locks import is_held
from sfd_core.host.settings import Settings

_DRIVER = Path("/proc/driver/nvidia/gpus")
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Slot:
    """Room for one training, held until the last process that inherited `held` is gone."""

    number: int
    held: int
    environment: Mapping[str, str]


def worker_name() -> str:
    """Return the name of this worker, in letters that Prefect allows in the name of a limit."""
    name = Settings.read().worker or socket.gethostname()
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)


def gpus() -> list[str]:
    """Return the GPUs this worker may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    return [str(number) for number, _ in enumerate(sorted(_DRIVER.glob("*")))]


def limit_name() -> str:
    """Return the name of this worker's concurrency limit in Prefect, such as `gpu@node7`."""
    return f"{'gpu' if gpus() else 'cpu'}@{worker_name()}"


def slot_count() -> int:
    """Return how many trainings fit on this machine: one for each GPU or set of GPUs, one on a CPU.

    Raises `ConfigError` if the variable asks for more GPUs than there are.
    """
    count = Settings.read().gpus_per_point
    if not gpus():
        return 1
    if len(gpus()) < count:
        raise ConfigError(f"SFD_GPUS_PER_POINT is {count}, but this worker has {len(gpus())} GPUs; set it to at most that")
    return len(gpus()) // count


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stages_at_once() -> int:
    """Return how many stages share this machine: one with GPUs, of which each uses all, else one a core, up to 4."""
    return 1 if gpus() else min(4, cores())


@contextmanager
def slot(limit: Callable[[], int], report: Callable[[str], None]) -> Iterator[Slot]:
    """Wait for a free slot among the first `limit()` and hold it; the kernel frees it however its holders end."""
    folder = _folder()
    waiting = False
    while True:
        for number in range(limit()):
            with (folder / str(number)).open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield Slot(number, file.fileno(), _devices(number))
                return
        if not waiting:
            report(f"waiting for one of {limit()} slots of {limit_name()}")
            waiting = True
        time.sleep(_POLL_SECONDS)


def taken() -> int:
    """Return how many slots of this machine are held."""
    return sum(is_held(file) for file in _folder().iterdir())


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"sfd-slots-{os.getuid()}-{worker_name()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _devices(number: int) -> dict[str, str]:
    count, available = Settings.read().gpus_per_point, gpus()
    if not available:
        return {}
    first = number * count % (len(available) // count * count)
    return {"CUDA_VISIBLE_DEVICES": ",".join(available[first : first + count])}
