"""Which share of some work is this process's: the only one, or one of several that `torchrun` or `accelerate launch` started.

The work is cut into items whose results are files, so that processes need no more than to wait for one another; they meet over
gloo, on GPUs too. Several machines need a shared disk.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from sfd_core.errors import ConfigError

T = TypeVar("T")

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
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        if not distributed.is_initialized():
            try:
                distributed.init_process_group("gloo", timeout=PATIENCE)
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

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.count > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Wait for the others a last time, then part."""
        self.wait()
        if self.count > 1 and distributed.is_initialized():
            distributed.destroy_process_group()
