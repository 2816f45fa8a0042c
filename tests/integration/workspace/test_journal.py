"""What the journal says of runs that live, that ended and that were killed."""

import os
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest

from sfd_core.workspace import journal

RUN = """
import sys, time
from pathlib import Path
from sfd_core.workspace import journal
with journal.recorded(Path(sys.argv[1]), sys.argv[2]):
    print("begun", flush=True)
    time.sleep(300)
"""
WORKER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]])
print(child.pid, flush=True)
child.wait()
"""
ROOT = Path(__file__).parents[3]


def test_a_killed_run_is_broken_until_it_is_forgotten(tmp_path: Path) -> None:
    run = uuid4()
    with subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path), str(run)], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert journal.broken(tmp_path) == []
        assert journal.alive(tmp_path) == {run: process.pid}
        process.kill()
    assert journal.broken(tmp_path) == [run]
    journal.clear(tmp_path, run)
    assert journal.broken(tmp_path) == [run]
    journal.forget(tmp_path, run)
    assert journal.broken(tmp_path) == []


def test_a_run_that_starts_again_has_no_process_to_end_yet(tmp_path: Path) -> None:
    run = uuid4()
    with journal.recorded(tmp_path, run):
        journal.clear(tmp_path, run)
        assert journal.alive(tmp_path) == {}


def test_a_run_that_ends_or_fails_by_itself_leaves_no_entry(tmp_path: Path) -> None:
    with journal.recorded(tmp_path, uuid4()):
        assert list(journal.alive(tmp_path).values()) == [os.getpid()]
    with pytest.raises(ValueError, match="its own"), journal.recorded(tmp_path, uuid4()):
        raise ValueError("its own")
    assert journal.broken(tmp_path) == []
    with pytest.raises(KeyboardInterrupt), journal.recorded(tmp_path, uuid4()):
        raise KeyboardInterrupt
    assert len(journal.broken(tmp_path)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's death on Linux only")
def test_a_run_ends_with_the_worker_that_is_killed(tmp_path: Path) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, RUN, str(tmp_path), str(uuid4())], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    worker.stdout.readline()
    worker.kill()
    worker.wait()
    worker.stdout.close()
    deadline = time.monotonic() + 10
    while journal.alive(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(journal.broken(tmp_path)) == 1
