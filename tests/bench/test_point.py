"""Where the time of a point of a sweep goes: every process that it starts, and what it asks the servers."""

import re
import threading
import time
from collections.abc import Iterator
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
TITLES = {
    r"from flows\.point": "flow run",
    r"supervisor\.py": "",
    r"shared_cache\.py": "DVC",
    r"sfd_core\.stages\.(\w+)": r"stage \1",
    r"sfd_core\.cli (\w+)": r"sfd \1",
}
"""Patterns of commands, and how the timeline calls them."""


def test_a_point_of_a_sweep(tmp_path: Path, benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted_laboratory(tmp_path / "project") as counted:
        monkeypatch.chdir(tmp_path / "project")
        counted.run(counted.point(0.1))
        commands, requests = counted.run(counted.point(0.2))
        with observed() as processes:
            benchmark.pedantic(counted.run, [counted.point(0.3), False], rounds=1)
    interpreters = [process for process in processes if Path(process["command"].split()[0]).name.startswith("python")]
    asked = {name: len(lines) for name, lines in requests.items()}
    timeline = [
        {"title": title, **{key: round(float(process[key]), 2) for key in ("first", "last", "cpu")}}
        for process in processes
        if (title := title_of(process["command"]))
    ]
    others = len(interpreters) - 1  # than the flow run itself
    benchmark.extra_info.update(processes=len(commands), python=others, requests=asked, timeline=timeline)


def title_of(command: str) -> str:
    """Return what a command is called in the timeline; "" for one that only watches over another, and is left out."""
    for pattern, title in TITLES.items():
        if found := re.search(pattern, command):
            return found.expand(title)
    return Path(command.split(maxsplit=1)[0]).name


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
