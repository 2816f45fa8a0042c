"""Programs under the supervisor: what they print, how they fail, and that nothing of them is left behind."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import psutil
import pytest
from waiting import wait_until

from sfd_core.host.errors import BusyError
from sfd_core.host.locks import locked
from sfd_core.host.machine import cores, slot, taken
from sfd_core.workspace.dvc import (
    Place,
    ProgramError,
    environment,
    remote_object,
    remote_of,
    stages_run,
    tail,
    write_local_config,
)
from sfd_core.workspace.shared_cache import write_whole

ROOT = Path(__file__).parents[3]
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
from sfd_core.workspace.dvc import Place, environment
folder = Path(sys.argv[1])
Place(folder, environment(folder), folder / "log").run(sys.executable, str(folder / "stubborn.py"))
"""


def place(folder: Path, lines: list[str] | None = None) -> Place:
    return Place(folder, environment(folder), folder / "log", report=(lines if lines is not None else []).append)


def pids(folder: Path) -> list[int]:
    file = folder / "pids"
    return [int(pid) for pid in wait_until(lambda: file.is_file() and file.read_text().split(), "the program's start", 20)]


def require_gone(found: list[int], patience: float) -> None:
    def is_there(pid: int) -> bool:
        return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE

    wait_until(lambda: not any(map(is_there, found)), f"the end of {found}", patience)


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
def test_a_program_ends_with_its_caller_even_one_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    patched = STUBBORN.replace("lambda *_: None", "signal.SIG_DFL")
    (tmp_path / "stubborn.py").write_text(patched)
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(tmp_path)], cwd=ROOT)
    found = pids(tmp_path)
    caller.send_signal(number)
    caller.wait(20)
    require_gone(found, 20)


def test_a_program_that_does_not_end_is_killed_after_the_seconds_of_the_setting(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    given = os.environ | {"SFD_GRACE_SECONDS": "3"}
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(tmp_path)], cwd=ROOT, env=given)
    stubborn = pids(tmp_path)[0]
    caller.terminate()
    time.sleep(2)
    assert psutil.pid_exists(stubborn)
    require_gone([stubborn], 15)
    caller.wait(20)


def test_the_environment_has_no_key_of_the_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    given = environment(tmp_path)
    assert not any("PREFECT" in name for name in given)
    assert given["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/.sfd/mlflow.db"
    assert given["PATH"].startswith(str(Path(sys.executable).parent))


@pytest.mark.parametrize(
    ("uri", "store"),
    [
        ("", "sqlite:///{}/.sfd/mlflow.db"),
        ("sqlite:///runs%25.db", "sqlite:///{}/runs%25.db"),
        ("sqlite:////srv/runs.db", "sqlite:////srv/runs.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_programs_in_other_folders_have_the_project_s_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, store: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert environment(tmp_path)["MLFLOW_TRACKING_URI"] == store.format(tmp_path)


@pytest.mark.parametrize("name", ["project", "a b#c,%d;é?", "it's", 'a "name"', "[x]=*$HOME"])
def test_a_worktree_shares_the_cache_and_the_remotes_of_its_project(tmp_path: Path, name: str) -> None:
    from dvc.config import Config  # noqa: PLC0415 - takes a second

    project, folder = tmp_path / name, tmp_path / name / ".sfd" / "points" / "key"
    for path in (project, folder):
        (path / ".dvc").mkdir(parents=True)
        (path / ".dvc" / "config").write_text("[core]\n    analytics = false\n    remote = store\n")
    assert remote_of(project) == "store"
    (project / ".dvc" / "config.local").write_text(
        "['remote \"store\"']\n    url = ../bytes\n"
        '[\'remote "s3"\']\n    url = s3://bucket/x\n    secret_access_key = "a%b#c"\n'
    )
    assert remote_object(project, "0123.dir") == str(project / "bytes" / "files" / "md5" / "01" / "23.dir")
    write_local_config(project, folder)
    config = Config(str(folder / ".dvc"))
    assert config["cache"]["dir"] == str(project / ".dvc" / "cache")
    assert config["remote"]["store"]["url"] == str(project / "bytes")
    assert config["remote"]["s3"] == {"url": "s3://bucket/x", "secret_access_key": "a%b#c"} | config["remote"]["s3"]
    assert config["core"]["remote"] == "store"
    assert not config["core"]["autostage"]
    assert (folder / ".dvc" / "config.local").stat().st_mode & 0o077 == 0


def test_an_object_of_the_remote_is_named_without_a_password(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    assert remote_object(tmp_path, "0123.dir") == ""
    address = "https://user:hidden@host/store/"
    (tmp_path / ".dvc" / "config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {address}\n")
    assert remote_object(tmp_path, "0123.dir") == "https://host/store/files/md5/01/23.dir"


def test_a_remote_of_the_machine_or_the_user_is_one_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dvc").mkdir()
    (tmp_path / "dvc" / "config").write_text("[core]\n    remote = site\n")
    project = tmp_path / "project"
    assert remote_of(project) is None
    for variable, folder in {
        "DVC_SYSTEM_CONFIG_DIR": tmp_path / "dvc",
        "DVC_GLOBAL_CONFIG_DIR": tmp_path / "dvc",
        "XDG_CONFIG_DIRS": f"{tmp_path}:/etc/xdg",
        "XDG_CONFIG_HOME": tmp_path,
    }.items():
        with monkeypatch.context() as patched:
            patched.setenv(variable, str(folder))
            assert remote_of(project) == "site", variable
    (project / ".dvc").mkdir(parents=True)
    (project / ".dvc" / "config").write_text("[core]\n    remote = own\n")
    monkeypatch.setenv("DVC_SYSTEM_CONFIG_DIR", str(tmp_path / "dvc"))
    assert remote_of(project) == "own"


def test_stages_that_ran_are_told_from_restored_ones() -> None:
    names = ("inputs", "train@sfd", "evaluate@sfd")
    printed = "Stage 'prepare' is cached - skipping run\n" + "".join(f"Running stage '{name}':\n> python\n" for name in names)
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


def pipeline(folder: Path, text: str) -> Place:
    """Lay out a DVC project of its own with a dvc.yaml."""
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (folder / "dvc.yaml").write_text(textwrap.dedent(text))
    return place(folder)


BUSY = """
from sfd_core.host.errors import BusyError, ConfigError, exits_cleanly
import sys

@exits_cleanly
def main():
    raise (BusyError if sys.argv[1] == "busy" else ConfigError)("somebody else trains this")

main()
"""


def test_a_stage_that_another_process_runs_is_told_from_one_that_fails(tmp_path: Path) -> None:
    there = pipeline(
        tmp_path,
        f"""
        stages:
          shared: {{cmd: {sys.executable} stage.py busy}}
          wrong: {{cmd: {sys.executable} stage.py wrong}}
        """,
    )
    (tmp_path / "stage.py").write_text(BUSY)
    there = replace(there, environment={**there.environment, "PYTHONPATH": str(ROOT)})
    with pytest.raises(BusyError, match="somebody else trains this"):
        there.dvc("repro", "shared")
    with pytest.raises(ProgramError, match="exited with 2"):
        there.dvc("repro", "wrong")


def test_stages_are_known_with_those_whose_outputs_they_read(tmp_path: Path) -> None:
    there = pipeline(
        tmp_path,
        """
        stages:
          prepare: {cmd: echo, outs: [data/train, data/held_out]}
          train:
            matrix: {variant: [dit, sfd]}
            cmd: echo
            deps: [data/train/images]
            outs: ["models/${item.variant}"]
          report: {cmd: echo, deps: [models], outs: [page.html]}
        """,
    )
    assert there.stage_graph() == {
        "prepare": set(),
        "train@dit": {"prepare"},
        "train@sfd": {"prepare"},
        "report": {"train@dit", "train@sfd"},
    }


def test_a_stage_has_as_many_threads_whatever_runs_beside_it(tmp_path: Path) -> None:
    command = "cmd: 'echo $OMP_NUM_THREADS >"
    text = f"stages: {{a: {{{command} a', outs: [a]}}, b: {{{command} b', deps: [a], outs: [b]}}}}"
    pipeline(tmp_path, text).reproduce(at_once=2)
    assert [int((tmp_path / name).read_text()) for name in "ab"] == [max(1, cores() // 2)] * 2


def test_a_lock_that_a_killed_dvc_left_empty_is_removed_and_results_come_back(tmp_path: Path) -> None:
    there = machine_of(tmp_path / "machine", tmp_path / "remote")
    there.dvc("repro")
    lock, out = (there.folder / name for name in ("dvc.lock", "out"))
    whole, result = lock.read_bytes(), out.read_bytes()
    lock.write_bytes(b"")
    assert stages_run(there.dvc("repro")) == []
    assert (lock.read_bytes(), out.read_bytes()) == (whole, result)


def test_a_file_of_dvc_is_written_whole_or_stays(tmp_path: Path) -> None:
    lock = tmp_path / "dvc.lock"
    lock.write_text("before")

    def failing(data: str, file: TextIO) -> None:
        file.write(data)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(str(lock), "after", failing)
    assert (lock.read_text(), list(tmp_path.iterdir())) == ("before", [lock])
    write_whole(str(lock), "after", lambda data, file: file.write(data))
    assert lock.read_text() == "after"


def test_stages_of_the_project_wait_for_what_they_read(tmp_path: Path) -> None:
    graph = Place(ROOT, environment(tmp_path), tmp_path / "log").stage_graph()
    assert graph["inputs"] == {"code"}
    graph = {stage: before - {"code", "inputs"} for stage, before in graph.items()}
    assert graph["prepare"] == set()
    assert graph["encode"] == {"prepare", "texture_vae", "features", "semantic_vae"}
    assert graph["train@sfd"] == {"prepare", "features", "semantic_vae", "encode", "schedule"}
    assert graph["evaluate@dit"] == {"prepare", "texture_vae", "encode", "reference", "train@dit"}
    assert {"train@dit", "train@sfd", "evaluate@dit", "evaluate@sfd", "reference"} < graph["report"]


def test_a_program_without_a_log_writes_to_this_process_s_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    there = Place(tmp_path, environment(tmp_path))
    assert there.run(sys.executable, "-c", "import sys; print('one'); print('two', file=sys.stderr)") == ""
    assert capfd.readouterr() == ("one\n", "two\n")
    with pytest.raises(ProgramError, match="ended with code 3"):
        there.run(sys.executable, "-c", "raise SystemExit(3)")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux lists who waits for a lock")
def test_a_result_that_another_process_is_still_recording_is_waited_for(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        there = pipeline(folder, "stages: {made: {cmd: date +%N > out, deps: [input], outs: [out]}}")
        (folder / "input").touch()
        (folder / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {tmp_path / 'cache'}\n")
        if folder == first:
            there.dvc("repro")
    (entry,) = (path for path in (tmp_path / "cache" / "runs").rglob("*") if path.is_file())
    record, unfinished = entry.read_text(), entry.with_name(".unfinished")
    with ThreadPoolExecutor(1) as other:
        with locked(tmp_path / "cache" / "runs.lock"):
            entry.rename(unfinished)
            unfinished.write_text(record[:10] + "{")
            printed = other.submit(there.dvc, "repro")
            inode = f":{(tmp_path / 'cache' / 'runs.lock').stat().st_ino} "
            while not printed.done() and not any(
                "->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()
            ):
                time.sleep(0.1)
            unfinished.write_text(record)
            unfinished.rename(entry)
        assert "is cached" in printed.result()
    assert (first / "out").read_text() == (second / "out").read_text()


def machine_of(folder: Path, remote: Path) -> Place:
    """Lay out a pipeline of one stage with a cache of its own and a remote that others share."""
    folder.mkdir()
    there = pipeline(folder, "stages: {made: {cmd: date +%N > out, deps: [input], outs: [out]}}")
    (folder / "input").touch()
    (folder / ".dvc" / "config.local").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {remote}\n")
    return there


def entries(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in (folder / "runs").rglob("*") if path.is_file()}


def test_only_the_results_of_the_stages_that_run_are_fetched_and_pushed(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    first, second = (machine_of(tmp_path / name, remote) for name in ("first", "second"))
    cache = {place.folder.name: place.folder / ".dvc" / "cache" for place in (first, second)}
    first.dvc("repro")
    (own,) = entries(cache["first"])
    (cache["first"] / "runs" / "aa" / "of-another").mkdir(parents=True)
    (cache["first"] / "runs" / "aa" / "of-another" / "stage").touch()
    push = ["push", "--run-cache", "made"]
    assert stages_run(first.dvc("repro", "--pull", "made", then=push)) == []  # a result of an earlier attempt is pushed, too
    assert entries(remote) == {own}
    (remote / "runs" / "bb" / "of-another").mkdir(parents=True)
    (remote / "runs" / "bb" / "of-another" / "stage").touch()
    assert stages_run(second.dvc("repro", "--pull", "made", then=push)) == []
    assert entries(cache["second"]) == {own}
    assert (tmp_path / "first" / "out").read_text() == (tmp_path / "second" / "out").read_text()


def test_a_result_that_others_have_comes_before_this_machine_s_own(tmp_path: Path) -> None:
    first, second = (machine_of(tmp_path / name, tmp_path / "remote") for name in ("first", "second"))
    first.dvc("repro", then=["push", "--run-cache"])
    second.dvc("repro")
    (tmp_path / "second" / "dvc.lock").unlink()
    assert stages_run(second.dvc("repro", "--pull", "made")) == []
    assert (tmp_path / "first" / "out").read_text() == (tmp_path / "second" / "out").read_text()


def test_the_second_command_runs_only_after_the_first(tmp_path: Path) -> None:
    there = machine_of(tmp_path / "project", tmp_path / "remote")
    (tmp_path / "project" / "input").unlink()
    with pytest.raises(ProgramError, match="`dvc --wait-for-lock repro --then --wait-for-lock push` ended with code"):
        there.dvc("repro", then=["push"])
    assert not (tmp_path / "remote").exists()


def test_results_in_the_cache_come_back_while_the_remote_is_away_and_others_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = machine_of(tmp_path / "machine", tmp_path / "remote")
    there.dvc("repro", then=["push"])
    out = there.folder / "out"
    result = out.read_text()
    shutil.rmtree(there.folder / ".dvc" / "cache")
    out.unlink()
    there.restore("made")
    assert out.read_text() == result

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    away = replace(there, environment=environment(there.folder))
    away.dvc("remote", "add", "--local", "--default", "away", "s3://dvc")
    away.dvc("remote", "modify", "--local", "away", "endpointurl", "http://127.0.0.1:9")
    out.unlink()
    away.restore("made")
    assert out.read_text() == result
