"""Where the time of a point of a sweep goes: every process that it starts, and what it asks the servers."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from counted_points import counted_laboratory
from laboratory import NEEDS_S3, WITH_SERVERS
from pytest_benchmark.fixture import BenchmarkFixture

pytestmark = [pytest.mark.bench, NEEDS_S3, pytest.mark.timeout(1200), *WITH_SERVERS]

POLL_SECONDS = 0.02


def test_a_point_of_a_sweep(
    tmp_path: Path, benchmark: BenchmarkFixture, note: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted_laboratory(tmp_path / "project") as counted:
        monkeypatch.chdir(tmp_path / "project")
        counted.run(counted.point(0.1))
        with observed() as processes:
            commands, requests = benchmark.pedantic(counted.run, [counted.point(0.2)], rounds=1)
    interpreters = [process for process in processes if Path(process["command"].split()[0]).name.startswith("python")]
    asked = {name: len(lines) for name, lines in requests.items()}
    # the flow run itself is Python, too
    note(processes=len(commands), python=len(interpreters) - 1, requests=asked, timeline=processes)


@contextmanager
def observed() -> Iterator[list[dict[str, Any]]]:
    """Look at the processes that this one starts; on exit the list has the command, first, last and CPU seconds of each."""
    seen: dict[psutil.Process, dict[str, Any]] = {}
    found: list[dict[str, Any]] = []
    done, began = threading.Event(), time.monotonic()

    def look() -> None:
        while not done.wait(POLL_SECONDS):
            now = time.monotonic() - began
            for process in psutil.Process().children(recursive=True):
                try:
                    used, command = process.cpu_times(), " ".join(process.cmdline())
                    if command:  # none of a process that has ended and is not waited for yet
                        record = seen.setdefault(process, {"first": now})
                        record |= {"last": now, "cpu": used.user + used.system, "command": command}
                except psutil.Error:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found.extend(seen.values())
