import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from answering import answering
from faulty_proxy import FaultyProxy
from postgresql import INSTALLED, PostgreSQL

from sfd_core.host.addresses import public
from sfd_core.tracking import address
from sfd_core.tracking.address import is_reachable, store_uri, why_unusable


@pytest.fixture
def proxy() -> Iterator[FaultyProxy]:
    """A proxy before a server that answers every question with 404."""
    with answering(404) as server:
        made = FaultyProxy(int(server.rpartition(":")[2]))
        yield made
        made.close()


def test_a_server_is_there_if_it_answers_at_all(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "ANSWER_SECONDS", 0.5)
    assert is_reachable(f"{proxy.endpoint}/")
    proxy.set("busy")
    assert is_reachable(proxy.endpoint)
    proxy.set("hangs")
    assert not is_reachable(proxy.endpoint)
    proxy.set("refuses")
    assert not is_reachable(proxy.endpoint)


def test_a_user_and_a_password_in_the_address_are_neither_asked_for_nor_shown(proxy: FaultyProxy) -> None:
    uri = proxy.endpoint.replace("://", "://user:p%40ss@")
    assert is_reachable(uri)
    assert public(uri) == proxy.endpoint


def test_a_database_is_there_if_it_takes_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert is_reachable(f"postgresql+psycopg://user:secret@127.0.0.1:{server.getsockname()[1]}/runs")
    assert not is_reachable("postgresql://user:secret@127.0.0.1:9/runs")
    assert not is_reachable("mysql://nobody.invalid/runs")
    assert not is_reachable("postgresql://127.0.0.1:many/runs")


def test_the_embedded_store_is_always_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert why_unusable(store_uri()) == ""


def test_a_file_that_is_no_database_is_told_before_mlflow_tries_for_minutes(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("words " * 200)
    (tmp_path / "empty.db").touch()
    assert why_unusable(f"sqlite:///{tmp_path}/empty.db") == ""
    assert why_unusable(f"sqlite:///{tmp_path}/new/folder/runs.db") == ""
    assert "text.db is no SQLite database" in why_unusable(f"sqlite:///{tmp_path}/text.db")
    assert "unable to open" in why_unusable(f"sqlite:///{tmp_path}")
    assert "text.db is no folder" in why_unusable(f"sqlite:///{tmp_path}/text.db/runs.db")


@pytest.mark.parametrize(
    "uri", ["ftp://host/runs", "file:///srv/mlruns", "./mlruns", "databricks", "http//host:5000", "http://[::1"]
)
def test_an_address_that_is_none_is_told_with_those_that_are(uri: str) -> None:
    assert "it is none of http://HOST:PORT" in why_unusable(uri)


@pytest.mark.parametrize("uri", ["http://host:many", "http://user:hidden@host:99999", "https://"])
def test_an_address_that_can_be_no_server_is_told_with_the_reason(uri: str) -> None:
    assert why_unusable(uri).startswith(("its port", "it names"))


@pytest.mark.skipif(not INSTALLED, reason="PostgreSQL is not installed")
def test_a_database_that_refuses_is_told_at_once_and_without_the_password() -> None:
    database = PostgreSQL()
    database.start()
    try:
        uri = database.url(password="wrong-word").replace("postgresql://", "postgresql+psycopg://")
        started = time.monotonic()
        reason = why_unusable(uri)
        assert time.monotonic() - started < 5
        assert reason
        assert "wrong-word" not in reason
    finally:
        database.stop()
