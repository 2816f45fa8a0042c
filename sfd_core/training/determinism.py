"""The same bits each time: random numbers and kernels of a training."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# CUDA reads it once, at the first matrix product of a process
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Leave the global generators as they were, and on a GPU choose kernels that give the same bits each time."""
    if device.type != "cuda":
        with torch.random.fork_rng(devices=[]):
            yield
        return
    # this mode would also fill every new tensor with NaN, a thousand kernels a step; nothing reads what it has not written
    deterministic: Any = torch.utils.deterministic
    filled = deterministic.fill_uninitialized_memory
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)  # with warnings only, attention would stay as it is
    deterministic.fill_uninitialized_memory = False
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        deterministic.fill_uninitialized_memory = filled


def seed_everything(seed: int) -> None:
    """Seed the global generators for layers that draw by themselves, such as dropout."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)
