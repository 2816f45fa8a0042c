"""What the machine can do: facts that stand beside every measurement."""

import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch


def facts() -> dict[str, Any]:
    """Return the processor, cores, threads of torch, memory, GPU and versions of this machine."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def matmul_peak(device: str = "cpu", dtype: torch.dtype = torch.float32, side: int = 2048) -> float:
    """Return the floating-point operations a second of the fastest of some square matrix products (a multiply-add is two)."""
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return 2 * side**3 / fastest(lambda: torch.mm(a, b), 5, device)


def copy_bandwidth(device: str = "cpu", mebibytes: int = 256) -> float:
    """Return the bytes a second, read and written, of the fastest of some copies that no cache holds."""
    source = torch.ones(mebibytes * 2**18, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / fastest(lambda: target.copy_(source), 5, device)


def wait_for(device: str) -> None:
    """Return once the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def fastest(work: Callable[[], object], rounds: int, device: str) -> float:
    """Return the seconds of the fastest round of some work, the first left out."""
    seconds = []
    for _ in range(rounds + 1):
        wait_for(device)
        began = time.perf_counter()
        work()
        wait_for(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
