"""Batches made ahead of their step by a thread, so that the network does not wait for data."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

AHEAD = 2
"""Batches that are made before they are asked for."""

Batch = Mapping[str, Tensor]


class Prefetcher:
    """Hands out the batches of steps `start` to `stop` - 1, each a list of the parts that a process takes in turn."""

    def __init__(
        self, make: Callable[[int], list[Batch]], start: int, stop: int, device: torch.device, pool: ThreadPoolExecutor
    ) -> None:
        self._make, self._device, self._pool = make, device, pool
        self._steps = iter(range(start, stop))
        self._coming: deque[Future[list[Batch]]] = deque()
        self.waited = 0.0
        """Seconds that `next` had to wait, all steps together."""
        for _ in range(AHEAD):
            self._order()

    @classmethod
    @contextmanager
    def running(cls, make: Callable[[int], list[Batch]], start: int, stop: int, device: torch.device) -> Iterator["Prefetcher"]:
        """Give a prefetcher whose thread ends with the block; `make` returns the parts of a step, on the CPU."""
        # One thread makes batches: a second team of workers would keep those of the network from the cores. It becomes the
        # default of threads that have not asked yet, so this one asks before, and gives the others theirs afterwards.
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(1, "batches", torch.set_num_threads, (1,))
        try:
            yield cls(make, start, stop, device, pool)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)

    def next(self) -> list[Batch]:
        """Return the parts of the next step on the device; raises what making them raised."""
        began = time.perf_counter()
        parts = self._coming.popleft().result()
        self.waited += time.perf_counter() - began
        self._order()
        return parts

    def _order(self) -> None:
        step = next(self._steps, None)
        if step is not None:
            self._coming.append(self._pool.submit(self._on_device, step))

    def _on_device(self, step: int) -> list[Batch]:
        return [{name: self._moved(tensor) for name, tensor in part.items()} for part in self._make(step)]

    def _moved(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)
