"""One bucket of a real S3 server (SeaweedFS)."""

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from answering import answering
from at_once import at_once
from faulty_proxy import FaultyProxy
from seaweed import free_ports

from sfd_core.host.errors import ConfigError, DataError, ResourceError
from sfd_core.host.paths import file_digest
from sfd_core.storage.bucket import PART_BYTES, Storage, UnavailableError


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


def test_objects_are_listed_by_prefix(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for number in (1, 2, 3):
        storage.upload(tmp_path / "file", f"listed/{number}")
    assert list(storage.list("listed/")) == ["listed/1", "listed/2", "listed/3"]
    assert list(storage.list("nothing/")) == []


def test_the_hash_of_an_object_tells_whether_it_is_there(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    storage.upload(tmp_path / "file", "there")
    assert storage.digest("there") == file_digest(tmp_path / "file")
    assert storage.digest("not there") is None


def test_an_absent_object_is_named_and_nothing_is_written(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s3://lab/absent .*no such object"):
        storage.download("absent", tmp_path / "down")
    assert list(tmp_path.iterdir()) == []


def test_an_absent_file_is_named(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it is not a file"):
        storage.upload(tmp_path / "absent", "key")


@pytest.mark.parametrize("request_of", ["download", "digest", "list"])
def test_an_absent_bucket_is_named(storage: Storage, tmp_path: Path, request_of: str) -> None:
    # not "upload": SeaweedFS makes the bucket for a key with the right to
    absent = Storage("no-such-bucket")
    requests = {
        "download": lambda: absent.download("key", tmp_path / "down"),
        "digest": lambda: absent.digest("key"),
        "list": lambda: list(absent.list()),
    }
    with pytest.raises(ResourceError, match="no bucket 'no-such-bucket'"):
        requests[request_of]()


def test_wrong_credentials_are_told_at_once_without_showing_them(endpoint: str, credentials: Callable[..., None]) -> None:
    credentials(endpoint, secret="wrong-secret")
    begun = time.monotonic()
    with pytest.raises(ResourceError, match="access denied") as caught:
        Storage("lab", patience=60).check()
    assert time.monotonic() - begun < 5
    assert "\n" not in str(caught.value)
    assert "wrong-secret" not in str(caught.value)


def test_a_server_that_is_down_is_told(credentials: Callable[..., None], tmp_path: Path) -> None:
    credentials(f"http://127.0.0.1:{free_ports(1)[0]}")
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
        Storage("lab").digest("key")


@pytest.mark.parametrize(
    "address", ["not an address", "ftp://host", "http://host:many", "http://user:hidden@host:1", "http://"]
)
def test_an_endpoint_that_is_no_address_is_told(credentials: Callable[..., None], address: str) -> None:
    credentials(address)
    with pytest.raises(ConfigError, match=r"^AWS_ENDPOINT_URL ") as caught:
        Storage("lab")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "host", "variables"),
    [
        ("http", "nobody.invalid", {}),
        ("https", "127.0.0.1", {"AWS_CA_BUNDLE": __file__}),
        ("https", "127.0.0.1", {"AWS_CA_BUNDLE": "/nowhere"}),
        ("https", "127.0.0.1", {}),
        ("http", "nobody.invalid", {"HTTP_PROXY": "http://user:hidden@127.0.0.1:9"}),
        ("http", "nobody.invalid", {"HTTP_PROXY": "http://user:hidden@127.0.0.1:many"}),
    ],
)
def test_a_server_that_cannot_be_reached_is_told_within_seconds_in_a_line(
    endpoint: str, credentials: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
    scheme: str, host: str, variables: dict[str, str],
) -> None:  # fmt: skip
    credentials(f"{scheme}://{host}:{endpoint.rpartition(':')[2]}")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    begun = time.monotonic()
    with pytest.raises(ResourceError, match=r"cannot use s3://lab/ at http.*AWS_ENDPOINT_URL") as caught:
        Storage("lab").check()
    assert time.monotonic() - begun < 20
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("status", [200, 302, 404, 500])
def test_a_server_that_is_not_s3_is_told_in_a_line(credentials: Callable[..., None], status: int) -> None:
    with answering(status) as address:
        credentials(address)
        with pytest.raises(ResourceError, match="cannot use s3://lab/") as caught:
            Storage("lab").check()
    assert "\n" not in str(caught.value)


def test_a_bucket_that_lets_one_in_passes_the_check(storage: Storage) -> None:
    storage.check()
    with pytest.raises(ResourceError, match="no bucket 'no-such-bucket'"):
        Storage("no-such-bucket").check()


def test_an_object_that_changed_since_it_was_uploaded_is_refused_and_nothing_is_written(
    storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "up").write_bytes(b"weights")
    storage.upload(tmp_path / "up", "changed", digest="0" * 64)
    with pytest.raises(DataError, match=r"s3://lab/changed is damaged"):
        storage.download("changed", tmp_path / "down")
    storage.upload(tmp_path / "up", "right")
    with pytest.raises(DataError, match=r"s3://lab/right is damaged"):
        storage.download("right", tmp_path / "down", digest="1" * 64)
    assert [path.name for path in tmp_path.iterdir()] == ["up"]


def test_of_many_who_create_an_object_only_one_succeeds(storage: Storage) -> None:
    outcomes = at_once([partial(storage.put, "contested", str(number).encode(), absent=True) for number in range(8)])
    assert sorted(outcomes) == ["ConflictError"] * 7 + ["done"]


def test_of_many_who_replace_what_they_read_only_one_succeeds(storage: Storage) -> None:
    etag = storage.put("replaced", b"before")
    outcomes = at_once([partial(storage.put, "replaced", str(number).encode(), etag=etag) for number in range(8)])
    assert sorted(outcomes) == ["ConflictError"] * 7 + ["done"]


def test_a_small_object_tells_its_age_by_the_servers_clock(storage: Storage) -> None:
    etag = storage.put("aged", b"x")
    time.sleep(2.1)
    content = storage.get("aged")
    assert (content.data, content.etag) == (b"x", etag)
    assert 1 <= content.age <= 4


def test_a_deleted_object_is_gone_and_may_be_deleted_again(storage: Storage) -> None:
    storage.put("deleted", b"x")
    storage.delete("deleted")
    storage.delete("deleted")
    assert storage.digest("deleted") is None


@pytest.mark.parametrize("mode", ["refuses", "busy", "hangs"])
@pytest.mark.usefixtures("impatient")
def test_a_patient_storage_outlasts_a_fault(
    proxy: FaultyProxy, credentials: Callable[..., None], tmp_path: Path, mode: str
) -> None:
    credentials(proxy.endpoint)
    (tmp_path / "up").write_bytes(os.urandom(2**18 + 1))
    proxy.set(mode)
    with pytest.raises(UnavailableError):
        Storage("lab").upload(tmp_path / "up", f"patient/{mode}")
    patient = Storage("lab", patience=60)
    threading.Timer(0.7, proxy.set, ["works"]).start()
    patient.upload(tmp_path / "up", f"patient/{mode}")
    patient.download(f"patient/{mode}", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == (tmp_path / "up").read_bytes()


@pytest.mark.usefixtures("impatient")
def test_an_upload_goes_through_although_the_server_vanishes_in_the_middle(
    proxy: FaultyProxy, credentials: Callable[..., None], tmp_path: Path
) -> None:
    credentials(proxy.endpoint)
    (tmp_path / "up").write_bytes(os.urandom(3 * 2**20))
    proxy.set("slow")

    def vanish() -> None:
        # one thread: on a busy machine two timers may fire in the other order
        time.sleep(0.2)
        proxy.set("refuses")
        time.sleep(0.8)
        proxy.set("works")

    threading.Thread(target=vanish).start()
    patient = Storage("lab", patience=60)
    patient.upload(tmp_path / "up", "interrupted")
    patient.download("interrupted", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == (tmp_path / "up").read_bytes()


def test_a_slow_server_is_no_fault(proxy: FaultyProxy, credentials: Callable[..., None], tmp_path: Path) -> None:
    credentials(proxy.endpoint)
    proxy.set("slow")
    (tmp_path / "up").write_bytes(b"x" * 300_000)
    slow = Storage("lab")
    slow.upload(tmp_path / "up", "slow")
    slow.download("slow", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == (tmp_path / "up").read_bytes()
