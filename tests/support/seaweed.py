"""A real S3 server (SeaweedFS) for tests, which may be killed and started again over the same data."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

CREDENTIALS = ("lab-key", "lab-secret")
WEED = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
START_SECONDS = 60


def free_ports(count: int) -> list[int]:
    """Return free ports whose gRPC sisters, 10000 above, are free too."""
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as probe, socket.socket() as sister:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            if port + 10_000 > 65_535 or port in ports:
                continue
            try:
                sister.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            ports.append(port)
    return ports


class SeaweedFS:
    """One server with the bucket `lab`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = free_ports(5)
        identity = {"accessKey": CREDENTIALS[0], "secretKey": CREDENTIALS[1]}
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        identities = {"identities": [{"name": "lab", "credentials": [identity], "actions": actions}]}
        (folder / "s3.json").write_text(json.dumps(identities))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    def start(self) -> None:
        """Return once it answers and has made the bucket."""
        assert WEED is not None
        names = ("s3", "master", "volume", "filer", "admin")
        command = [
            WEED, "-logtostderr=true", "mini", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            "-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-s3.iam=false",
            *(f"-{name}.port={port}" for name, port in zip(names, self.ports, strict=True)),
            f"-s3.config={self.folder / 's3.json'}", "-bucket=lab",
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        with (self.folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                command,
                env=environment | {"GOMEMLIMIT": "384MiB"},
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
        key, secret = CREDENTIALS
        client = boto3.client(
            "s3", "us-east-1", endpoint_url=self.endpoint, aws_access_key_id=key, aws_secret_access_key=secret,
            config=Config(connect_timeout=2, read_timeout=2, retries={"total_max_attempts": 1}),
        )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        with closing(client):
            while time.monotonic() < deadline:
                try:
                    client.head_bucket(Bucket="lab")
                except (BotoCoreError, ClientError):
                    time.sleep(0.1)
                else:
                    return
        self.kill()
        pytest.fail(f"SeaweedFS did not start:\n{(self.folder / 'log').read_text()[-2000:]}")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
