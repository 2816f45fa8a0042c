"""Storage against a real S3 server (SeaweedFS)."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfd_core.errors import DataError, ResourceError
from sfd_core.storage import Storage
from sfd_core.storage.bucket import PART_BYTES

CREDENTIALS = ("lab-key", "lab-secret")
WEED = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


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


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a server with the bucket `lab`; returns its address."""
    if WEED is None:
        pytest.skip("the SeaweedFS binary is not installed")
    folder = tmp_path_factory.mktemp("seaweed")
    identity = {"accessKey": CREDENTIALS[0], "secretKey": CREDENTIALS[1]}
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [{"name": "lab", "credentials": [identity], "actions": actions}]}))
    s3, master, volume, filer = free_ports(4)
    command = [
        WEED, "-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
        "-webdav=false", "-admin.ui=false", f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}",
        f"-filer.port={filer}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", f"-s3.config={config}",
        "-bucket=lab",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, env=environment | {"GOMEMLIMIT": "384MiB"}, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{s3}/healthz", folder / "log")
        yield f"http://127.0.0.1:{s3}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_until_healthy(url: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"SeaweedFS did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture
def storage(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    set_environment(monkeypatch, endpoint, *CREDENTIALS)
    return Storage("lab")


def set_environment(monkeypatch: pytest.MonkeyPatch, endpoint: str, key: str, secret: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def test_what_goes_up_comes_down(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "up").write_bytes(b"0123456789" * 100)
    storage.upload(tmp_path / "up", "runs/a.bin")
    storage.download("runs/a.bin", tmp_path / "new" / "down")
    assert (tmp_path / "new" / "down").read_bytes() == (tmp_path / "up").read_bytes()


def test_large_objects_travel_in_parts(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "up").write_bytes(os.urandom(PART_BYTES + 12_345))
    storage.upload(tmp_path / "up", "large")
    storage.download("large", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == (tmp_path / "up").read_bytes()


def test_objects_are_listed_by_prefix_with_their_sizes(storage: Storage, tmp_path: Path) -> None:
    for size in (1, 2, 3):
        (tmp_path / "file").write_bytes(b"x" * size)
        storage.upload(tmp_path / "file", f"listed/{size}")
    assert [(entry.key, entry.size) for entry in storage.list("listed/")] == [("listed/1", 1), ("listed/2", 2), ("listed/3", 3)]
    assert list(storage.list("nothing/")) == []


def test_existence(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    storage.upload(tmp_path / "file", "there")
    assert storage.exists("there")
    assert not storage.exists("not there")


def test_an_absent_object_is_named_and_nothing_is_written(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s3://lab/absent .*no such object"):
        storage.download("absent", tmp_path / "down")
    assert list(tmp_path.iterdir()) == []


def test_an_absent_file_is_named(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it is no file"):
        storage.upload(tmp_path / "absent", "key")


@pytest.mark.parametrize("request_of", ["download", "exists", "list"])
def test_an_absent_bucket_is_named(storage: Storage, tmp_path: Path, request_of: str) -> None:
    # not "upload": SeaweedFS makes the bucket for a key with the right to
    absent = Storage("no-such-bucket")
    requests = {
        "download": lambda: absent.download("key", tmp_path / "down"),
        "exists": lambda: absent.exists("key"),
        "list": lambda: list(absent.list()),
    }
    with pytest.raises(ResourceError, match="no bucket 'no-such-bucket'"):
        requests[request_of]()


def test_wrong_credentials_are_told_without_showing_them(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_environment(monkeypatch, endpoint, CREDENTIALS[0], "wrong-secret")
    with pytest.raises(ResourceError, match="access denied") as caught:
        list(Storage("lab").list())
    assert "wrong-secret" not in str(caught.value)


def test_a_server_that_is_down_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_environment(monkeypatch, f"http://127.0.0.1:{free_ports(1)[0]}", *CREDENTIALS)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ResourceError, match=r"does not answer .*AWS_ENDPOINT_URL"):
        Storage("lab").upload(tmp_path / "file", "key")


def test_missing_credentials_are_told(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ResourceError, match="set AWS_ACCESS_KEY_ID"):
        Storage("lab").exists("key")


def test_an_endpoint_that_is_no_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, "not an address", *CREDENTIALS)
    with pytest.raises(ResourceError, match="check AWS_ENDPOINT_URL"):
        Storage("lab")
