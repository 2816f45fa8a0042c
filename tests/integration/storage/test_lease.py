"""A lease in a real S3 server: one holder at a time, whatever happens to it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from at_once import at_once
from faulty_proxy import FaultyProxy
from waiting import wait_until

from sfd_core.host.errors import BusyError, DataError, ResourceError
from sfd_core.storage.bucket import Storage
from sfd_core.storage.lease import Holder, Lease, LostError


@contextmanager
def another_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr("sfd_core.storage.lease._machine", lambda: "another")
        yield


def abandoned(storage: Storage, key: str, seconds: float) -> Lease:
    """Acquire a lease and stop renewing it without releasing it, as a killed process does."""
    lease = Lease(storage, key, seconds)
    lease.acquire()
    lease._ended.set()
    return lease


def is_lost(lease: Lease) -> bool:
    try:
        lease.check()
    except LostError:
        return True
    return False


def test_a_held_lease_is_refused_by_the_name_of_its_holder_and_free_when_released(storage: Storage) -> None:
    with Lease(storage, "held") as lease:
        with pytest.raises(BusyError, match=rf"{lease.who} holds the lease held and lives"):
            Lease(storage, "held").acquire()
        lease.check()
    with Lease(storage, "held"):
        pass


def test_the_lease_of_another_machine_is_refused_once_it_is_renewed(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Lease(storage, "renewed elsewhere", seconds=10)
    with another_machine(monkeypatch):
        first.acquire()
    with pytest.raises(BusyError, match="holds the lease renewed elsewhere and lives"):
        Lease(storage, "renewed elsewhere", seconds=10).acquire()
    first.check()
    first.release()
    assert "if it does not renew it within" in capsys.readouterr().err


@pytest.mark.parametrize("released", [True, False])
def test_the_lease_of_another_machine_is_taken_over_once_it_is_released_or_expires(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, released: bool
) -> None:
    with another_machine(monkeypatch):
        first = abandoned(storage, "gone", seconds=60 if released else 3)
    if released:
        threading.Timer(1, first.release).start()
    with Lease(storage, "gone", seconds=10) as second:
        second.check()
        if not released:
            with pytest.raises(LostError, match="took over gone"):
                first._replace(first._etag, first._holder)


def test_of_many_who_begin_together_only_one_gets_the_lease(storage: Storage) -> None:
    storage.put("raced", Holder("", "before", 0.0).encoded())
    for key in ("raced", "raced and new"):
        leases = [Lease(storage, key, 60) for _ in range(6)]
        outcomes = at_once([lease.acquire for lease in leases])
        assert (len(outcomes), outcomes.count("done")) == (6, 1)
        for lease in leases:
            lease.release()


def test_a_lease_is_renewed_while_it_is_held(storage: Storage) -> None:
    with Lease(storage, "renewed", seconds=2) as lease:
        time.sleep(4)
        lease.check()
        with pytest.raises(ResourceError, match="holds the lease"):
            Lease(storage, "renewed").acquire()


def test_an_expired_lease_is_taken_over_and_its_holder_learns_of_it(storage: Storage) -> None:
    first = abandoned(storage, "expired", seconds=4)  # longer than a busy machine takes to ask for it
    with pytest.raises(ResourceError, match="holds the lease"):
        Lease(storage, "expired").acquire()
    wait_until(lambda: storage.get("expired").age > 4, "the end of the lease", 30)
    with Lease(storage, "expired") as second:
        first._ended.clear()
        threading.Thread(target=first._renew, daemon=True).start()
        wait_until(lambda: is_lost(first), "the loss", 30)
        first.release()
        second.check()
        with pytest.raises(ResourceError, match="holds the lease"):
            Lease(storage, "expired").acquire()


@pytest.mark.usefixtures("impatient")
def test_a_lease_outlasts_a_server_that_is_down_for_a_while(
    proxy: FaultyProxy, credentials: Callable[..., None], storage: Storage
) -> None:
    credentials(proxy.endpoint)
    with Lease(Storage("lab"), "outage", seconds=1) as lease:
        proxy.set("refuses")
        wait_until(lambda: storage.get("outage").age > 3, "the outage", 30)
        lease.check()
        proxy.set("works")
        wait_until(lambda: storage.get("outage").age < 1, "the renewal", 30)
        lease.check()


def test_an_own_write_whose_answer_was_lost_counts(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    put = storage.put

    def twice(key: str, data: bytes, *, absent: bool = False, etag: str | None = None) -> str:
        put(key, data, absent=absent, etag=etag)
        return put(key, data, absent=absent, etag=etag)

    monkeypatch.setattr(storage, "put", twice)
    lease = Lease(storage, "repeated", seconds=60)
    lease.acquire()
    lease._etag = lease._replace(lease._etag, Holder(lease._holder.token, lease.who, 60, renewals=1))
    assert storage.get("repeated").etag == lease._etag
    lease.release()


def test_an_object_that_is_no_lease_is_named(storage: Storage) -> None:
    storage.put("no lease", b"weights")
    with pytest.raises(DataError, match="no lease is no lease"):
        Lease(storage, "no lease").acquire()
