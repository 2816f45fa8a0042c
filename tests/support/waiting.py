"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 400.0


def wait_until(holds: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Return what `holds` returns, once it is true; raises `AssertionError` if it is not within so many seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = holds()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come true in {patience:.0f} s")
