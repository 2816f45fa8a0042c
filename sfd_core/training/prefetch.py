"""Batches made ahead of their step by a thread, so that the network does not wait for data."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager

import torch
from torch import Tensor

from sfd_core.host.ahead import ahead

Batch = Mapping[str, Tensor]


class Prefetcher:
    """Hands out batches, each a list of the parts that a process takes in turn."""

    def __init__(self, batches: Iterator[list[Batch]]) -> None:
        self._batches = batches
        self.waited = 0.0
        """Seconds that `next` had to wait, all steps together."""

    @classmethod
    @contextmanager
    def running(cls, make: Callable[[int], list[Batch]], start: int, stop: int, device: torch.device) -> Iterator["Prefetcher"]:
        """Give a prefetcher of steps `start` to `stop` - 1 whose thread ends with the block; `make` returns a step's parts, on
        the CPU.
        """
        # One thread makes batches: a second team of workers would keep those of the network from the cores. It becomes the
        # default of threads that have not asked yet, so this one asks before, and gives the others theirs afterwards.
        threads = torch.get_num_threads()

        def batches() -> Iterator[list[Batch]]:
            torch.set_num_threads(1)
            for step in range(start, stop):
                yield [{name: _moved(tensor, device) for name, tensor in part.items()} for part in make(step)]

        try:
            with closing(ahead(batches())) as made:
                yield cls(made)
        finally:
            torch.set_num_threads(threads)

    def next(self) -> list[Batch]:
        """Return the parts of the next step on the device; raises what making them raised."""
        began = time.perf_counter()
        parts = next(self._batches)
        self.waited += time.perf_counter() - began
        return parts


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
