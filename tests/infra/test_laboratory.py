"""The laboratory with its real servers: what clients find, what survives, and that nobody gets in without a password."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from laboratory import without_servers
from postgresql import INSTALLED, PostgreSQL
from seaweed import WEED, free_ports
from waiting import wait_until

from infra.lab.databases import make_databases
from sfd_core.host.errors import ResourceError

ROOT = Path(__file__).parents[2]
CLIENT = """
import asyncio, sys
from sfd_core.storage.bucket import Storage
from sfd_core.tracking.store import Store
from prefect import get_client

async def note(value):
    async with get_client() as client:
        if value:
            await client.create_concurrency_limit(tag=value, concurrency_limit=1)
        return [limit.tag for limit in await client.read_concurrency_limits(limit=9, offset=0)]

value, storage, store = sys.argv[1] if len(sys.argv) > 1 else "", Storage("checkpoints"), Store()
if value:
    storage.put("note", value.encode())
    run = store._client.create_run(store.experiment_id, run_name=value).info.run_id
    store._client.log_text(run, value, "note.txt")
runs = store._client.search_runs([store.experiment_id])
texts = [store._mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/note.txt") for run in runs]
print(storage.get("note").data.decode(), [run.info.run_name for run in runs], texts, asyncio.run(note(value)))
"""
WORKER = f"{sys.executable} -c 'import time; time.sleep(600)'"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("laboratory"),
    pytest.mark.skipif(WEED is None, reason="the SeaweedFS binary is not installed"),
]


class Laboratory:
    """The laboratory's commands and clients, as a user's shell would run them."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        variables = ("SFD_LAB_S3_PORT", "SFD_LAB_MLFLOW_PORT", "SFD_LAB_PREFECT_PORT")
        self.ports = dict(zip(variables, map(str, free_ports(3)), strict=True))
        self.environment = {
            **without_servers(os.environ), **self.ports, "SFD_LAB_FOLDER": str(folder), "SFD_LAB_WORKER": WORKER,
            "PYTHONPATH": os.pathsep.join(sys.path), **environment,
        }  # fmt: skip

    def run(self, command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            [sys.executable, "-m", "infra.lab", command],
            env={**self.environment, **environment}, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert not check or ended.returncode == 0, ended.stdout + ended.stderr
        return ended

    def client(self, *words: str) -> str:
        """Run a client in a shell that has sourced the environment file only, and return what it printed last."""
        program = self.folder / "client.py"
        program.write_text(CLIENT)
        kept = {name: self.environment[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in self.environment}
        shell = f'source {self.folder / "env"} && exec {sys.executable} {program} "$@"'
        ended = subprocess.run(
            ["bash", "-c", shell, "bash", *words],
            env=kept,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip().splitlines()[-1]

    def secrets(self) -> list[str]:
        return list(json.loads((self.folder / "credentials.json").read_text()).values())

    def processes(self) -> list[psutil.Process]:
        state = json.loads((self.folder / "state.json").read_text())
        pids = [state["supervisor"]["pid"], *(record["process"]["pid"] for record in state["servers"])]
        leaders = [psutil.Process(pid) for pid in pids]
        # the servers are the supervisor's children, too
        return list(dict.fromkeys(process for leader in leaders for process in (leader, *leader.children(recursive=True))))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """A laboratory on all addresses with passwords, in PostgreSQL where that is installed."""
    database = PostgreSQL() if INSTALLED else None
    environment = {"SFD_LAB_HOST": "0.0.0.0", "SFD_LAB_NAME": "localhost"}
    if database is not None:
        database.start()
        environment["SFD_DATABASE_URL"] = database.url()
    lab = Laboratory(tmp_path_factory.mktemp("guarded") / "lab", **environment)
    try:
        lab.run("up")
        yield lab
    finally:
        lab.run("down", check=False)
        if database is not None:
            database.stop()


def answer(port: str, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_clients_are_led_to_all_three_and_everything_survives_a_restart(tmp_path: Path) -> None:
    lab = Laboratory(tmp_path / "lab")
    try:
        lab.run("up")
        expected = "first ['first'] ['first'] ['first']"
        assert lab.client("first") == expected
        assert lab.run("status").stdout.count(" healthy ") == 3
        processes = lab.processes()
        lab.run("down")
        assert not [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        lab.run("up")
        assert lab.client() == expected
        for process in lab.processes():
            if "mini" in process.cmdline() or "prefect" in process.cmdline():
                process.send_signal(signal.SIGKILL)
        wait_until(lambda: lab.run("status", check=False).returncode == 0, "the return of the servers", 240)
        assert lab.client() == expected
    finally:
        lab.run("down", check=False)


def test_a_guarded_laboratory_serves_those_who_know_the_passwords(guarded: Laboratory) -> None:
    assert guarded.client("second") == "second ['second'] ['second'] ['second']"


def test_nobody_else_gets_in(guarded: Laboratory) -> None:
    assert answer(guarded.ports["SFD_LAB_MLFLOW_PORT"], "/api/2.0/mlflow/experiments/search?max_results=1") == 401
    assert answer(guarded.ports["SFD_LAB_PREFECT_PORT"], "/api/admin/version") == 401
    assert answer(guarded.ports["SFD_LAB_S3_PORT"], "/checkpoints/note") == 403


def test_only_the_three_ports_are_open_to_others(guarded: Laboratory) -> None:
    listening = {
        (connection.laddr.ip, str(connection.laddr.port))
        for process in guarded.processes()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {port for ip, port in listening if ip not in {"127.0.0.1", "::1"}} == set(guarded.ports.values())


def test_no_secret_is_on_a_command_line_or_in_a_log(guarded: Laboratory) -> None:
    secrets = guarded.secrets()
    if "SFD_DATABASE_URL" in guarded.environment:
        secrets.append(guarded.environment["SFD_DATABASE_URL"].partition("lab:")[2].partition("@")[0])
    for process in guarded.processes():
        assert not any(secret in " ".join(process.cmdline()) for secret in secrets)
    logs = list((guarded.folder / "logs").iterdir())
    assert len(logs) >= 5
    for path in [*logs, guarded.folder / "state.json"]:
        assert not any(secret in path.read_text(errors="replace") for secret in secrets), path


def test_another_password_than_the_one_of_the_first_start_is_told_at_once(tmp_path: Path) -> None:
    lab = Laboratory(tmp_path / "lab", SFD_LAB_AUTH="on")
    try:
        lab.run("up")
        lab.run("down")
        up = lab.run("up", check=False, SFD_LAB_MLFLOW_PASSWORD="another-password")
        assert up.returncode == 2
        assert "mlflow refuses the password" in up.stderr
        assert "another-password" not in up.stderr
    finally:
        lab.run("down", check=False)


@pytest.mark.skipif(not INSTALLED, reason="PostgreSQL is not installed")
def test_a_database_server_that_cannot_be_used_is_told_without_the_password() -> None:
    psycopg = pytest.importorskip("psycopg")
    database = PostgreSQL()
    database.start()
    try:
        make_databases(database.url())
        make_databases(database.url())
        with psycopg.connect(database.url().replace("/sfd", "/postgres"), autocommit=True) as connection:
            names = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
            assert {"sfd_mlflow", "sfd_mlflow_auth", "sfd_prefect"} <= names
            connection.execute("DROP DATABASE sfd_prefect")
            connection.execute("CREATE ROLE guest LOGIN PASSWORD 'guest-word'")
        with pytest.raises(
            ResourceError, match=r"does not let the user guest create the database sfd_prefect.*CREATE DATABASE"
        ):
            make_databases(database.url("guest", "guest-word"))
        with pytest.raises(ResourceError, match=r"cannot be used: .*password authentication failed") as caught:
            make_databases(database.url(password="wrong-word"))
        assert "wrong-word" not in str(caught.value)
    finally:
        database.stop()
    with pytest.raises(ResourceError, match=r"127\.0\.0\.1:\d+ cannot be used.*SFD_DATABASE_URL"):
        make_databases(database.url())
