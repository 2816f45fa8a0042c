"""A server that cannot be used is told in a line, before anything starts."""

import socket
import subprocess
import sys
import time

import pytest
from answering import answering
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_API_SSL_CERT_FILE, PREFECT_API_URL, temporary_settings
from projects import ROOT
from seaweed import free_ports

from flows import worker
from sfd_core.host.errors import ConfigError, ResourceError


def told(uri: str) -> str:
    begun = time.monotonic()
    with (
        temporary_settings({PREFECT_API_URL: uri}),
        pytest.raises(ResourceError, match=r"^Prefect at .*; start it .* or set PREFECT_API_URL right$") as caught,
    ):
        worker._make_limit()
    assert time.monotonic() - begun < 20
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)
    return str(caught.value)


def test_a_server_that_cannot_be_reached_is_told_without_the_password() -> None:
    port = free_ports(1)[0]
    assert "refused" in told(f"http://user:hidden@127.0.0.1:{port}/api")
    told("http://user:hidden@nobody.invalid/api")
    for path in (__file__, "/nowhere"):
        with temporary_settings({PREFECT_API_SSL_CERT_FILE: path}):
            assert "refused" not in told(f"https://user:hidden@127.0.0.1:{port}/api")


def test_a_server_that_is_not_prefect_is_told() -> None:
    with answering() as address:
        told(f"{address}/api")


def test_an_address_from_a_profile_that_is_none_is_told() -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://user:hidden@host:many/api"}),
        pytest.raises(ConfigError, match="PREFECT_API_URL is 'http://host:many/api', but its port is no number"),
    ):
        worker._make_limit()


@pytest.mark.parametrize(
    "variables",
    [
        {"PREFECT_API_URL": "http://[::1"},
        {"PREFECT_API_URL": "http://user:hidden@127.0.0.1:many/api"},
        {"PREFECT_API_URL": "127.0.0.1:4200/api"},
        {"AWS_ENDPOINT_URL": "http://user:hidden@127.0.0.1:many"},
    ],
)
def test_a_bad_address_ends_the_worker_before_it_imports_prefect(variables: dict[str, str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "flows.deployments"]
    ended = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=60)
    said = [line for line in ended.stderr.splitlines() if not line.startswith("import time:")]
    assert ended.returncode == 2
    assert len(said) == 1
    assert said[0].startswith(f"error: {next(iter(variables))} is ")
    assert "hidden" not in said[0]
    assert "| prefect" not in ended.stderr


def test_a_server_that_hangs_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(worker.AT_START, PREFECT_API_REQUEST_TIMEOUT, 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "timed out" in told(f"http://127.0.0.1:{server.getsockname()[1]}/api")
