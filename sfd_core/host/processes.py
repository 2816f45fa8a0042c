"""Which share of some work is this process's: the only one, or one of several that `spread` or another launcher started.

The work is cut into items whose results are files, so that processes need no more than to wait for one another; they meet over
gloo, on GPUs too. Several machines need a shared disk.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import resumable_dir
from sfd_core.host.settings import Settings

T = TypeVar("T")

LEFT_ALONE = 75
"""Exit code of a process that ends only because another one did, which has told why."""
PATIENCE = timedelta(days=2)
"""How long one process waits for the others: the first computes numbers while the rest already draw what comes next."""


@dataclass(frozen=True)
class Processes:
    """This process among all of them; `rank` 0 merges and writes."""

    rank: int
    count: int

    @classmethod
    def join(cls) -> "Processes":
        """Meet the other processes that the launcher's environment names, and take this one's own GPU where there are any.

        Raises `ConfigError` if the environment names more than one process but not where they meet.
        """
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls(0, 1)
        if launcher := Settings.read().launcher:
            threading.Thread(target=_end_with, args=[launcher], daemon=True).start()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        if not distributed.is_initialized():
            try:
                # files are agreed upon over gloo, gradients over NCCL where there are GPUs
                backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
                distributed.init_process_group(backend, timeout=PATIENCE)
            except ValueError as error:
                raise ConfigError(
                    f"WORLD_SIZE is {count}, but the processes cannot meet ({error}); "
                    "start them with torchrun or accelerate launch"
                ) from error
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that merges and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return every count-th of `items`, starting at this process's rank."""
        return items[self.rank :: self.count]

    @property
    def device(self) -> torch.device:
        """This process's own GPU, or the CPU; it holds in every thread."""
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    @contextmanager
    def first_first(self) -> Iterator[None]:
        """Let the others into the `with` block once the first process is through: what it checked need not be checked again."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    @contextmanager
    def resumable_dir(self, path: Path, work: Path) -> Iterator[Path]:
        """Give all processes the one folder of `paths.resumable_dir`, which ends when all are through."""
        with resumable_dir(path, work) if self.first else nullcontext(work / "out") as folder:
            self.wait()
            yield folder
            self.wait()

    def wait(self) -> None:
        """Return once every process has come here; exit with `LEFT_ALONE` if one never will."""
        if self.count > 1:
            try:
                distributed.barrier()
            except RuntimeError:
                sys.exit(LEFT_ALONE)

    def leave(self) -> None:
        """Wait for the others a last time, then part."""
        self.wait()
        if self.count > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


ALONE = Processes(0, 1)
"""The only process."""


def spread(preempted: int | None = None) -> None:
    """Run this program (`python -m module ...`) in as many processes as `SFD_PROCESSES` says, or as there are GPUs, and exit.

    `preempted` is the exit code after SIGTERM of a program that then keeps what it has done, else 128 + 15.

    Returns at once where one process is enough or a launcher has started several already. Raises `ConfigError` if the variable
    is no positive number.
    """
    count = Settings.read().processes or max(1, torch.cuda.device_count())
    if count == 1 or "WORLD_SIZE" in os.environ:
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ[Settings.variable("launcher")] = str(os.getpid())
    # a process that fails has told why; the launcher's own account of it only hides that
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        1, 1, count, run_id="sfd", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
        logs_specs=DefaultLogsSpecs(os.devnull), local_addr="localhost",  # its own address may have no name
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", _module(), *sys.argv[1:])
    except ChildFailedError as error:
        failures = sorted(error.failures.values(), key=lambda failure: (failure.exitcode == LEFT_ALONE, failure.timestamp))
        code = failures[0].exitcode
        sys.exit(code if code >= 0 else 128 - code)
    except SignalException as error:
        sys.exit(128 + error.sigval if preempted is None else preempted)
    sys.exit(0)


def _end_with(launcher: int) -> None:
    """End this process, wherever it stands, as soon as its launcher is no more: killed, it cannot end the others itself."""
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(LEFT_ALONE)


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        raise ConfigError("a script cannot start itself in several processes; start it with python -m, or unset SFD_PROCESSES")
    return spec.name
