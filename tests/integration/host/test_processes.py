import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = textwrap.dedent("""
    import json, os, signal, sys, time
    from pathlib import Path
    import torch
    from sfd_core.host.errors import DataError, exits_cleanly
    from sfd_core.host.processes import Processes, spread

    @exits_cleanly
    def main():
        spread(85)
        processes = Processes.join()
        if "--wait" in sys.argv:
            os.write(1, b"waits\\n")  # whole, whoever else writes
            time.sleep(600)
        with processes.first_first():
            if processes.first:
                Path("checked").write_text("")
                if "--wrong" in sys.argv:
                    raise DataError("the first process says what is wrong")
            assert Path("checked").exists()
        if processes.rank == 1:
            if "--second-wrong" in sys.argv:
                raise DataError("the second process says what is wrong")
            if "--second-killed" in sys.argv:
                os.kill(os.getpid(), signal.SIGKILL)
        if processes.count > 1:
            torch.distributed.all_reduce(torch.zeros(1))
        with processes.resumable_dir(Path("out"), Path("work")) as folder:
            threads = os.environ.get("OMP_NUM_THREADS")
            told = {"share": list(processes.share(range(7))), "threads": threads, "arguments": sys.argv[1:]}
            told["address"] = os.environ.get("MASTER_ADDR")
            (folder / f"{processes.rank}.json").write_text(json.dumps(told))
        processes.leave()

    if __name__ == "__main__":
        main()
""")


def start(folder: Path, count: str, *arguments: str) -> subprocess.Popen[str]:
    (folder / "program.py").write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if name not in {"OMP_NUM_THREADS", "SFD_PROCESSES"}}
    environment |= {"PYTHONPATH": str(ROOT), "SFD_PROCESSES": count}
    command = [sys.executable, "-m", "program", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(folder: Path, count: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    process = start(folder, count, *arguments)
    output, error = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, error)


@pytest.mark.parametrize("count", [1, 2])
def test_a_program_spreads_over_the_processes_asked_for(tmp_path: Path, count: int) -> None:
    ended = run(tmp_path, str(count), "--some", "argument")
    assert ended.returncode == 0, ended.stderr
    told = [json.loads((tmp_path / "out" / f"{rank}.json").read_text()) for rank in range(count)]
    assert sorted(item for one in told for item in one["share"]) == list(range(7))
    assert all(one["arguments"] == ["--some", "argument"] for one in told)
    assert all(one["address"] == (None if count == 1 else "localhost") for one in told)
    assert all((one["threads"] is None) == (count == 1) for one in told)
    assert len(list((tmp_path / "out").iterdir())) == count
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("failure", "code", "told"),
    [
        pytest.param("--wrong", 2, "error: the first process says what is wrong", marks=pytest.mark.slow),
        ("--second-wrong", 2, "error: the second process says what is wrong"),
        pytest.param("--second-killed", 137, "error: process 2 of 2 was ended by SIGKILL; ", marks=pytest.mark.slow),
    ],
)
def test_a_failure_is_told_once_and_ends_all_with_its_exit_code(tmp_path: Path, failure: str, code: int, told: str) -> None:
    """Also while the others exchange tensors."""
    ended = run(tmp_path, "2", failure)
    assert ended.returncode == code
    (line,) = ended.stderr.splitlines()
    assert line.startswith(told)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(signal.SIGTERM, 85, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        (signal.SIGKILL, -9),
    ],
)
def test_no_process_outlives_the_one_that_started_all(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    process = start(tmp_path, "2", "--wait")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["waits\n"] * 2
    process.send_signal(sent)
    _, error = process.communicate(timeout=120)  # the pipes close when the last process has ended
    assert process.returncode == code
    assert "Traceback" not in error
