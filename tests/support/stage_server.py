"""Start one stage again and again, each time in a new process, but import it only once.

    python stage_server.py sfd_core.stages.train

runs in a project's folder and prints `ready` once the stage and all that it imports are in memory. For every line that it is
given, a JSON object, it forks: the child leads a process group of its own and runs the stage as `python -m` does, with
`arguments` and with its output in the file `log`. If `killed_at` is not null, it kills itself before that change of files,
counted from 1; 0 is the first change below `outputs`. The server prints the child's id and, when the child has ended, its exit
code as `subprocess` counts it (-9 for SIGKILL).
"""

import importlib
import json
import os
import runpy
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHANGES = {"os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
"""Audit events of what changes files besides `open` for writing."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def serve(module: str) -> None:
    """Fork a run of `module` for every line of standard input; in a child, return when that run is over."""
    sys.path[0] = os.getcwd()  # noqa: PTH109, this is what python -m puts there
    importlib.import_module(module)
    del sys.modules[module]  # a run executes the stage's own file anew
    if threads := threads_lost_in_a_fork():
        sys.exit(f"importing {module} started the threads {threads}, which a fork does not copy; set OMP_NUM_THREADS to 1")
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            run(module, order)
            return
        os.setpgid(child, child)  # whoever comes first
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def threads_lost_in_a_fork() -> list[str]:
    """Return the names of all threads but this one and those of pyarrow's allocator, which looks after its own in a fork."""
    mine = threading.get_native_id()
    names = {int(task.name): (task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
    return [name for thread, name in names.items() if thread != mine and not name.startswith("jemalloc")]


def run(module: str, order: Mapping[str, Any]) -> None:
    """Run `module` as `python -m` does, with its output in the log."""
    os.setpgid(0, 0)
    written = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, source in ((0, nothing), (1, written), (2, written)):
        os.dup2(source, descriptor)
    sys.argv = [module, *order["arguments"]]
    if order["killed_at"] is not None:
        sys.addaudithook(Killer(order["killed_at"]))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class Killer:
    """An audit hook that kills the process group before a change of files."""

    def __init__(self, change: int) -> None:
        self.change, self.seen = change, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES and not (event == "open" and arguments[2] & WRITES):
            return
        self.seen += 1
        if self.seen == self.change or (self.change == 0 and any("outputs" in str(argument) for argument in arguments)):
            os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    serve(sys.argv[1])
