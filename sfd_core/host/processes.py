"""Splits the work of a stage between the processes that `spread` or another launcher started.

Results of the work are files, so processes only need to wait for each other. They do so over gloo, also on GPUs. Several
machines need a shared disk.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from sfd_core.host.errors import LEFT_ALONE_EXIT_CODE, ConfigError
from sfd_core.host.machine import cores
from sfd_core.host.resume import UNKNOWN_CODE, Code, resumable_dir
from sfd_core.host.settings import Settings

T = TypeVar("T")

PATIENCE = timedelta(days=2)
"""How long a process waits for the others: rank 0 computes metrics while the others already draw the next samples."""
HUNG = timedelta(hours=1)
"""Time for the others to join in adding up gradients, in which rank 0 may download checkpoints; then the training ends."""


@dataclass(frozen=True)
class Processes:
    """Rank of this process and number of processes; rank 0 merges and writes."""

    rank: int
    count: int

    @classmethod
    def join(cls) -> "Processes":
        """Connect to the processes that the launcher's environment names, and select this process's GPU if there is one.

        Raises `ConfigError` if the environment names several processes but no address to connect to.
        """
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls(0, 1)
        if launcher := Settings.read().launcher:
            threading.Thread(target=_exit_with_launcher, args=[launcher], daemon=True).start()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        if not distributed.is_initialized():
            try:
                # gloo synchronises the writing of files; NCCL exchanges gradients on GPUs
                backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
                distributed.init_process_group(backend, timeout=PATIENCE)
                if torch.cuda.is_available():
                    _group_of(torch.device("cuda"))._set_default_timeout(HUNG)
            except ValueError as error:
                raise ConfigError(
                    f"WORLD_SIZE is {count}, but the processes cannot connect ({error}); "
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
        """This process's GPU, or the CPU; the same in every thread."""
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    @contextmanager
    def first_first(self) -> Iterator[None]:
        """Let the first process run the `with` block before the others, so that they can reuse what it verified."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    @contextmanager
    def resumable_dir(
        self, path: Path, work: Path, code: Code = UNKNOWN_CODE, check: Callable[[], None] = lambda: None
    ) -> Iterator[Path]:
        """Yield the folder of `resume.resumable_dir` to all processes; the first one finishes it when all are done."""
        with resumable_dir(path, work, code, check) if self.first else nullcontext(work / "out") as folder:
            self.wait()
            yield folder
            self.wait()

    def wait(self) -> None:
        """Return when every process has reached this call."""
        if self.count > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Wait for the others, then close the connection."""
        self.wait()
        if self.count > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


ALONE = Processes(0, 1)
"""A single process."""


def spread(preempted: int | None = None) -> None:
    """Run this program (`python -m module ...`) in as many processes as `SFD_PROCESSES` says, or as there are GPUs, and exit.

    `preempted` is the exit code after SIGTERM for a program that can then resume; the default is 128 + 15. Returns at once if
    one process is enough or a launcher has already started several. Raises `ConfigError` if the variable is not a positive
    number.
    """
    settings = Settings.read()
    count = settings.processes or max(1, torch.cuda.device_count())
    if count == 1 or "WORLD_SIZE" in os.environ:
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    os.environ[Settings.variable("launcher")] = str(os.getpid())
    # the failing process reports the reason; the launcher's log would only hide it
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        1, 1, count, run_id="sfd", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
        logs_specs=DefaultLogsSpecs(os.devnull), shutdown_timeout=settings.grace_seconds,
        local_addr="localhost",  # the address of this machine may have no name
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", _module(), *sys.argv[1:])
    except ChildFailedError as error:
        failures = sorted(
            error.failures.values(), key=lambda failure: (failure.exitcode == LEFT_ALONE_EXIT_CODE, failure.timestamp)
        )
        code = failures[0].exitcode
        if code < 0:
            killed = f"process {failures[0].local_rank + 1} of {count} was ended by {signal.Signals(-code).name}"
            print(f"error: {killed}; if the machine ran out of memory, use fewer processes or smaller batches", file=sys.stderr)
        elif code == LEFT_ALONE_EXIT_CODE:
            print(f"error: the {count} processes lost their connections to one another; start them again", file=sys.stderr)
        sys.exit(code if code >= 0 else 128 - code)
    except SignalException as error:
        sys.exit(128 + error.sigval if preempted is None or error.sigval != signal.SIGTERM else preempted)
    sys.exit(0)


def _group_of(device: torch.device) -> Any:
    """Return what exchanges tensors of a kind of device."""
    return distributed.distributed_c10d._get_default_group()._get_backend(device)


def _exit_with_launcher(launcher: int) -> None:
    """Exit as soon as the launcher has died: a killed launcher cannot stop its processes."""
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(LEFT_ALONE_EXIT_CODE)


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        raise ConfigError(
            "a script cannot restart itself in several processes; start it with python -m, or unset SFD_PROCESSES"
        )
    return spec.name
