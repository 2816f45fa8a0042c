"""What the journal says of runs that live, that ended and that were killed."""

import subprocess
import sys
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from waiting import wait_until

from sfd_core.workspace import journal

RUN = """
import sys, time
from pathlib import Path
from sfd_core.workspace import journal
journal.record(Path(sys.argv[1]), sys.argv[2])
journal.record(Path(sys.argv[1]), sys.argv[2])  # as a flow that calls another one
print("begun", flush=True)
time.sleep(float(sys.argv[3]))
"""
WORKER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]])
print(child.pid, flush=True)
child.wait()
"""
ROOT = Path(__file__).parents[3]


def start(folder: Path, run: UUID, seconds: float) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), str(run), str(seconds)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.parametrize("seconds", [0, 300])
def test_a_run_whose_process_is_gone_stays_until_it_is_forgotten(tmp_path: Path, seconds: float) -> None:
    """However it ended: the server may not have heard of it."""
    run = uuid4()
    with start(tmp_path, run, seconds) as process:
        if seconds:
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
    with start(tmp_path, run, 300) as process:
        journal.clear(tmp_path, run)
        assert journal.alive(tmp_path) == {}
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's death on Linux only")
def test_a_run_ends_with_the_worker_that_is_killed(tmp_path: Path) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, RUN, str(tmp_path), str(uuid4()), "300"], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    worker.stdout.readline()
    worker.kill()
    worker.wait()
    worker.stdout.close()
    wait_until(lambda: not journal.alive(tmp_path), "the end of the run", 10)
    assert len(journal.broken(tmp_path)) == 1
