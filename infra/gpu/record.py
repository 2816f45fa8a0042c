"""What was measured so far, on disk after every step, within a time limit."""

import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from infra.bench import machine
from sfd_core.host.paths import write_json

GRACE = 15.0
"""Seconds after the limit in which a measurement may still end by itself."""


class Record:
    """The results of one part as JSON. A measurement that fails is recorded and the next one follows.

    Nothing begins after `seconds`; the process ends soon after them, whatever it does, with all that is written. With `only`,
    measurements whose name contains none of these texts are left out.
    """

    def __init__(self, path: Path, seconds: float, only: Sequence[str] = ()) -> None:
        self.path, self.end, self.only = path, time.monotonic() + seconds, only
        path.parent.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, Any] = {}
        self._writing = threading.Lock()
        self.head = {"command": " ".join(sys.argv), "seconds_allowed": seconds, **machine.facts(), **_gpu()}
        self._write()
        watch = threading.Timer(seconds + GRACE, os._exit, (124,))
        watch.daemon = True
        watch.start()

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return self.end - time.monotonic()

    @property
    def failed(self) -> list[str]:
        """Names of what failed or was skipped."""
        return [name for name, result in self.results.items() if "error" in result or result.get("passed") is False]

    def measure(self, name: str, work: Callable[[Path], Mapping[str, Any]]) -> None:
        """Record what `work`, which gets an empty folder, returns, or its error."""
        if self.only and not any(part in name for part in self.only):
            return
        began = time.monotonic()
        if self.left <= 0:
            result: dict[str, Any] = {"error": "skipped: the time was up"}
        else:
            try:
                with tempfile.TemporaryDirectory(prefix="sfd-gpu-") as folder:
                    result = dict(work(Path(folder)))
            except Exception as error:  # noqa: BLE001 - the next measurement may succeed
                result = {"error": f"{type(error).__name__}: {error}"[:2000]}
            gc.collect()  # what a failed measurement held, too
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self.add(name, result | {"seconds": round(time.monotonic() - began, 2)})

    def add(self, name: str, result: Mapping[str, Any]) -> None:
        """Record and print a result; any thread may call it."""
        with self._writing:
            self.results[name] = _plain(result)
            self._write()
        print(f"{name}: {json.dumps(self.results[name])[:300]}", flush=True)

    def _write(self) -> None:
        write_json(self.path, self.head | {"results": self.results})


def _gpu() -> dict[str, Any]:
    facts: dict[str, Any] = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        facts["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        facts["nvidia_smi"] = None
    return facts


def _plain(value: Any) -> Any:
    """Return `value` as JSON can hold it: infinity and NaN as words."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
