"""Programs under the supervisor: what they print, how they fail, and that nothing of them is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sfd_core.host.machine import slot, taken
from sfd_core.workspace.programs import Place, ProgramError, environment, remote_of, stages_run, tail, write_local_config

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: None)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
open("pids", "w").write(f"{os.getpid()} {child.pid}")
time.sleep(1 if "short" in sys.argv else 300)
"""
CALLER = """
import sys
from pathlib import Path
from sfd_core.workspace.programs import Place, environment
folder = Path(sys.argv[1])
Place(folder, folder / "log", environment(folder)).run(sys.executable, str(folder / "stubborn.py"))
"""


def place(folder: Path, lines: list[str] | None = None) -> Place:
    return Place(folder, folder / "log", environment(folder), told=(lines if lines is not None else []).append)


def pids(folder: Path) -> list[int]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if (folder / "pids").is_file() and (found := (folder / "pids").read_text().split()):
            return [int(pid) for pid in found]
        time.sleep(0.05)
    raise AssertionError("the program did not start")


def require_gone(found: list[int], patience: float) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in found):
            return
        time.sleep(0.1)
    raise AssertionError(f"still there: {found}")


def test_output_is_told_line_by_line_and_returned(tmp_path: Path) -> None:
    lines: list[str] = []
    printed = place(tmp_path, lines).run(sys.executable, "-c", "import sys; print('one'); print('two', file=sys.stderr)")
    assert sorted(printed.split()) == sorted(lines) == ["one", "two"]
    assert place(tmp_path).run(sys.executable, "-c", "print('three')").split() == ["three"]


def test_a_failure_says_the_command_and_what_it_said_last(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"ended with code 3:\n(.*\n)*line 99$") as failed:
        place(tmp_path).run(sys.executable, "-c", "[print('line', n) for n in range(100)]; raise SystemExit(3)")
    assert "line 50" not in str(failed.value)


def test_what_a_program_left_running_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    place(tmp_path).run(sys.executable, str(tmp_path / "stubborn.py"), "short")
    require_gone(pids(tmp_path), 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_program_ends_with_its_caller_even_one_that_is_killed(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched = STUBBORN.replace("lambda *_: None", "signal.SIG_DFL")
    (tmp_path / "stubborn.py").write_text(patched)
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(tmp_path)], cwd=Path(__file__).parents[3])
    found = pids(tmp_path)
    caller.send_signal(number)
    caller.wait(20)
    require_gone(found, 20)


def test_the_environment_has_no_key_of_the_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    given = environment(tmp_path)
    assert not any("PREFECT" in name for name in given)
    assert given["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/.sfd/mlflow.db"
    assert given["PATH"].startswith(str(Path(sys.executable).parent))


def test_a_worktree_shares_the_cache_and_the_remotes_of_its_project(tmp_path: Path) -> None:
    from dvc.config import Config  # noqa: PLC0415 - takes a second

    project, folder = tmp_path / "project", tmp_path / "project" / ".sfd" / "points" / "key"
    for path in (project, folder):
        (path / ".dvc").mkdir(parents=True)
        (path / ".dvc" / "config").write_text("[core]\n    analytics = false\n    remote = store\n")
    assert remote_of(project) == "store"
    (project / ".dvc" / "config.local").write_text(
        "['remote \"store\"']\n    url = ../bytes\n['remote \"s3\"']\n    url = s3://bucket/x\n    secret_access_key = a%b\n"
    )
    write_local_config(project, folder)
    config = Config(str(folder / ".dvc"))
    assert config["cache"]["dir"] == str(project / ".dvc" / "cache")
    assert config["remote"]["store"]["url"] == str(project / "bytes")
    assert config["remote"]["s3"] == {"url": "s3://bucket/x", "secret_access_key": "a%b"} | config["remote"]["s3"]
    assert config["core"]["remote"] == "store"
    assert not config["core"]["autostage"]
    assert (folder / ".dvc" / "config.local").stat().st_mode & 0o077 == 0


def test_stages_that_ran_are_told_from_restored_ones() -> None:
    printed = "Stage 'prepare' is cached - skipping run\nRunning stage 'train@sfd':\n> python\nRunning stage 'evaluate@sfd':\n"
    assert stages_run(printed) == ["train@sfd", "evaluate@sfd"]
    assert tail("\n".join(["", *map(str, range(50)), ""])).split()[0] == "25"


def test_a_place_for_a_training_is_held_until_its_last_process_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFD_WORKER", f"test-{os.getpid()}-{tmp_path.name}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,8")
    monkeypatch.setenv("SFD_GPUS_PER_POINT", "2")
    with slot(lambda: 2, print) as first, slot(lambda: 2, print) as second:
        assert [first.environment, second.environment] == [{"CUDA_VISIBLE_DEVICES": "4,5"}, {"CUDA_VISIBLE_DEVICES": "6,7"}]
        assert taken() == 2
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[first.held])
    assert taken() == 1
    child.communicate(b"\n")
    assert taken() == 0
