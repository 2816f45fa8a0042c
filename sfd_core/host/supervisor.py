"""Runs one command in a session of its own; it ends with this process, and this process ends with its parent.

    python sfd_core/host/supervisor.py PARENT LOG GRACE COMMAND...

On SIGTERM, or when process PARENT is gone, everything the command started gets SIGTERM, and SIGKILL after GRACE seconds:
the time for a training to write its checkpoint. It waits for supervisors below, which do the same.
Output goes to the file LOG, or with `-` to this process's own: a pipe would keep its reader waiting for a process that
outlives the command.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

SECONDS_TO_KILL = 5.0
SECONDS_BELOW = 3.0
"""A supervisor below gets its signal so much later, and has as much time."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_WATCHED = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def die_with_parent(parent: int) -> None:
    """Let this process get SIGTERM when the thread that started it ends; at once if process `parent` is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the command line's command and exit with its code; 128 + n if a signal ended it or this process."""
    parent, log, grace, *command = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    die_with_parent(int(parent))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with nullcontext() if log == "-" else Path(log).open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output and subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, set()),  # noqa: PLW1509 - this process has one thread
        )
    code = None
    while code is None:
        received = signal.sigwait(_WATCHED)
        if received is not signal.SIGCHLD:
            code = 128 + received
        elif child.poll() is not None:
            code = child.returncode if child.returncode >= 0 else 128 - child.returncode
    deadline = time.monotonic() + float(grace) + SECONDS_TO_KILL + SECONDS_BELOW
    _end_group(child.pid, float(grace))
    while received is not signal.SIGCHLD and _reap() and time.monotonic() < deadline:
        time.sleep(0.05)  # a supervisor below that has lost its parent
    sys.exit(code)


def _end_group(group: int, grace: float) -> None:
    """End the processes left in the command's session and return when none is."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, SECONDS_TO_KILL)):
        deadline = time.monotonic() + patience
        sent = int(number)
        while time.monotonic() < deadline:
            _reap()
            try:
                os.killpg(group, sent)
            except ProcessLookupError:
                return
            sent = 0
            time.sleep(0.05)


def _reap() -> bool:
    """Collect ended processes that nobody waits for: a group exists as long as it has one. Return whether others are left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


if __name__ == "__main__":
    main()
