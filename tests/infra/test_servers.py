"""How the servers are started: with no secret on a command line, and nothing of SeaweedFS beyond loopback."""

import configparser
import os
import socket
from pathlib import Path
from unittest.mock import patch
from urllib.parse import quote

import pytest
from seaweed import WEED

from infra.lab.credentials import Credentials
from infra.lab.databases import Databases
from infra.lab.ports import choose_ports, is_free, require_free
from infra.lab.servers import SISTER, WEED_PORTS, Server, client_environment, inherited, servers, write_configuration
from infra.lab.settings import Settings
from sfd_core.host.errors import ResourceError

PASSWORD = "p@ss/w%rd"
URL = f"postgresql://user:{quote(PASSWORD, safe='')}@db.example:5433/sfd"
PORTS = {name: 20_000 + number for number, name in enumerate(WEED_PORTS)}

pytestmark = pytest.mark.skipif(WEED is None, reason="the SeaweedFS binary is not installed")


def made(folder: Path, environment: dict[str, str]) -> tuple[Settings, Credentials, dict[str, Server]]:
    with patch.dict(os.environ, {"SFD_LAB_FOLDER": str(folder), "SFD_LAB_WORKER": "sleep 1", **environment}):
        settings = Settings.read()
    credentials = Credentials.of(folder, environment)
    databases = Databases.of(folder, settings.database_url)
    write_configuration(settings, credentials, databases)
    return settings, credentials, {server.name: server for server in servers(settings, credentials, databases, PORTS)}


def test_no_secret_is_on_a_command_line(tmp_path: Path) -> None:
    _, credentials, made_servers = made(tmp_path, {"SFD_LAB_HOST": "0.0.0.0", "SFD_DATABASE_URL": URL})
    words = " ".join(word for server in made_servers.values() for word in server.command)
    for secret in (*credentials.values(), PASSWORD, quote(PASSWORD, safe="")):
        assert secret not in words
    assert not any(secret in repr(server) for server in made_servers.values() for secret in credentials.values())


def test_only_s3_of_seaweedfs_is_reachable_from_elsewhere(tmp_path: Path) -> None:
    _, _, made_servers = made(tmp_path, {"SFD_LAB_HOST": "0.0.0.0"})
    assert "-ip.bind=127.0.0.1" in made_servers["s3"].command
    assert made_servers["s3-gate"].command[-4:] == ("0.0.0.0", "8333", "127.0.0.1", str(PORTS["s3"]))
    assert "s3-gate" not in made(tmp_path, {})[2]


def test_passwords_are_asked_for_beyond_loopback(tmp_path: Path) -> None:
    settings, credentials, made_servers = made(tmp_path, {"SFD_LAB_HOST": "0.0.0.0"})
    assert "basic-auth" in made_servers["mlflow"].command
    assert made_servers["prefect"].environment["PREFECT_SERVER_API_AUTH_STRING"] == credentials.prefect_auth_string
    variables = client_environment(settings, credentials)
    assert variables["MLFLOW_TRACKING_PASSWORD"] == credentials.mlflow_password
    assert variables["PREFECT_API_AUTH_STRING"] == credentials.prefect_auth_string
    settings, credentials, made_servers = made(tmp_path, {})
    assert "basic-auth" not in made_servers["mlflow"].command
    assert "PREFECT_SERVER_API_AUTH_STRING" not in made_servers["prefect"].environment


def test_pages_of_other_sites_may_not_call_prefect(tmp_path: Path) -> None:
    _, _, made_servers = made(tmp_path, {})
    allowed = made_servers["prefect"].environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert allowed == ["http://localhost:4200", "http://127.0.0.1:4200"]


def test_mlflow_reads_the_address_of_its_users_whatever_characters_it_has(tmp_path: Path) -> None:
    made(tmp_path, {"SFD_DATABASE_URL": URL})
    read = configparser.ConfigParser()
    read.read(tmp_path / "mlflow_auth.ini")
    assert read["mlflow"]["database_uri"] == Databases.of(tmp_path, URL).mlflow_auth


def test_databases_are_files_or_of_one_postgresql_server(tmp_path: Path) -> None:
    files = Databases.of(tmp_path, None)
    assert files.prefect == f"sqlite+aiosqlite:///{tmp_path}/prefect.db"
    assert len({files.mlflow, files.mlflow_auth, files.prefect}) == 3
    user = f"user:{quote(PASSWORD, safe='')}@db.example:5433"
    ours = Databases.of(tmp_path, URL)
    assert ours.mlflow == f"postgresql+psycopg://{user}/sfd_mlflow"
    assert ours.mlflow_auth == f"postgresql+psycopg://{user}/sfd_mlflow_auth"
    assert ours.prefect == f"postgresql+asyncpg://{user}/sfd_prefect"
    assert PASSWORD not in repr(ours)


def test_the_servers_see_nothing_of_the_callers_mlflow_prefect_or_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "SFD_DATABASE_URL", "SFD_LAB_HOST"):
        monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setenv("LANG", "C.UTF-8")
    assert "elsewhere" not in inherited().values()
    assert inherited()["LANG"] == "C.UTF-8"


def test_ports_of_seaweedfs_are_free_and_kept() -> None:
    ports = choose_ports({}, {"s3": 8333}, in_use=False)
    assert set(ports) == set(WEED_PORTS)
    assert len(set(ports.values())) == len(ports)
    assert ports["s3"] == 8333
    assert all(is_free("127.0.0.1", port + SISTER) for name, port in ports.items() if name != "s3")
    assert choose_ports(ports, {"s3": 8333}, in_use=False) == ports


def test_a_port_that_is_in_use_is_told_with_the_variable_to_change(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _, _, made_servers = made(tmp_path, {"SFD_LAB_PREFECT_PORT": str(port)})
        with pytest.raises(ResourceError, match=f"port {port}, which prefect needs, is in use.*SFD_LAB_PREFECT_PORT"):
            require_free(made_servers["prefect"])
    require_free(made_servers["prefect"])


def test_a_host_that_is_not_of_this_machine_is_told() -> None:
    with pytest.raises(ResourceError, match=r"192\.0\.2\.1 is no address of this machine"):
        is_free("192.0.2.1", 8333)
