"""The supervisor over two small servers: one that serves files, and one that ignores every request to end."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from laboratory import without_servers
from seaweed import free_ports
from waiting import wait_until

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "small_laboratory.py"


class Laboratory:
    """One folder and port in which the commands run as a user's would."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_ports(1)[0]

    def run(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"SFD_LAB_FOLDER": str(self.folder), "SFD_LAB_PREFECT_PORT": str(self.port), "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, PROGRAM, command],
            env={**without_servers(os.environ), **own, **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def state(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return loaded

    def pid(self, name: str) -> int:
        return int(next(record["process"]["pid"] for record in self.state()["servers"] if record["name"] == name))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Laboratory]:
    lab = Laboratory(tmp_path / "lab")
    yield lab
    lab.run("down")


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_up_status_and_down(lab: Laboratory) -> None:
    assert "does not run" in lab.run("status").stdout
    assert lab.run("status").returncode == 1
    up = lab.run("up")
    assert up.returncode == 0, up.stderr
    assert f"http://127.0.0.1:{lab.port}" in up.stdout
    status = lab.run("status")
    assert status.returncode == 0, status.stdout
    assert "prefect  healthy" in status.stdout
    pids = [lab.pid("prefect"), lab.pid("worker"), lab.state()["supervisor"]["pid"]]
    down = lab.run("down")
    assert down.returncode == 0, down.stderr
    assert "stopped in" in down.stdout
    assert not any(map(runs, pids))
    assert "worker: did not end when asked and was killed" in (lab.folder / "logs" / "supervisor.log").read_text()
    assert "does not run" in lab.run("down").stdout


def test_everything_in_the_folder_is_its_owners(lab: Laboratory) -> None:
    lab.run("up")
    assert lab.folder.stat().st_mode & 0o777 == 0o700
    for name in ("env", "credentials.json", "s3.json", "mlflow_auth.ini"):
        assert (lab.folder / name).stat().st_mode & 0o777 == 0o600


def test_the_environment_file_can_be_sourced(lab: Laboratory) -> None:
    lab.run("up", SFD_LAB_S3_SECRET_ACCESS_KEY="it's $HOME")
    shell = f"source {lab.folder / 'env'} && {sys.executable} -c 'import os; print(os.environ[\"AWS_SECRET_ACCESS_KEY\"])'"
    assert subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout.strip() == "it's $HOME"


def test_a_second_up_changes_nothing_and_other_settings_are_refused(lab: Laboratory) -> None:
    lab.run("up")
    pid = lab.pid("prefect")
    again = lab.run("up")
    assert again.returncode == 0
    assert "runs already" in again.stdout
    other = lab.run("up", SFD_LAB_MLFLOW_PORT="5001")
    assert other.returncode == 2
    assert "other settings" in other.stderr
    assert lab.pid("prefect") == pid


def test_what_dies_is_started_again(lab: Laboratory) -> None:
    lab.run("up")
    pid = lab.pid("prefect")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: lab.pid("prefect") != pid and lab.run("status").returncode == 0, "the server's return", 30)
    assert "started again 1 times" in lab.run("status").stdout


def test_a_killed_supervisor_leaves_the_servers_and_the_next_takes_them_over(lab: Laboratory) -> None:
    lab.run("up")
    pids = [lab.pid("prefect"), lab.pid("worker")]
    os.kill(lab.state()["supervisor"]["pid"], signal.SIGKILL)
    status = lab.run("status")
    assert status.returncode == 1
    assert "supervisor is gone" in status.stdout
    assert all(map(runs, pids))
    os.kill(pids[1], signal.SIGKILL)
    up = lab.run("up", UNRELATED="another shell")
    assert up.returncode == 0, up.stderr
    assert lab.pid("prefect") == pids[0]
    assert lab.pid("worker") != pids[1]


def test_down_ends_what_a_killed_supervisor_left(lab: Laboratory) -> None:
    lab.run("up")
    pids = [lab.pid("prefect"), lab.pid("worker")]
    os.kill(lab.state()["supervisor"]["pid"], signal.SIGKILL)
    assert "no supervisor watched it" in lab.run("down").stdout
    assert not any(map(runs, pids))


def test_a_port_in_use_is_told_before_anything_starts(lab: Laboratory) -> None:
    with socket.create_server(("127.0.0.1", lab.port)):
        up = lab.run("up")
    assert up.returncode == 2
    assert up.stderr.startswith(f"error: port {lab.port}, which prefect needs, is in use")
    assert lab.state()["servers"] == []
    assert "last time: port" in lab.run("status").stdout


def test_a_server_that_cannot_start_is_told_with_its_log_and_the_others_are_stopped(lab: Laboratory) -> None:
    up = lab.run("up", SMALL_BROKEN="1")
    assert up.returncode == 2
    assert "worker ended as soon as it began" in up.stderr
    assert "the disk is on fire" in up.stderr
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", lab.port))


def test_no_secret_is_in_a_log_or_the_state(lab: Laboratory) -> None:
    lab.run("up")
    secrets = json.loads((lab.folder / "credentials.json").read_text()).values()
    files = [lab.folder / "state.json", *(lab.folder / "logs").iterdir()]
    assert len(files) >= 4
    for path in files:
        assert not any(secret in path.read_text(errors="replace") for secret in secrets), path
