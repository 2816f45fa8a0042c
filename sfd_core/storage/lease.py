"""A lock between machines that share only a bucket. The holder renews it; without renewal it expires.

An object names the holder. It is written only if it is absent or unchanged, which the server checks. Ages use the server's
clock only. A released lease stays as an object that is marked as released, because not every S3 has conditional deletes.
"""

import json
import os
import socket
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from sfd_core.host.errors import BusyError, DataError, ResourceError
from sfd_core.storage.bucket import ConflictError, Storage

SECONDS = 300.0
"""Seconds until a lease without renewal expires; longer than usual outages of a storage."""
RENEWALS = 5
"""Renewals within that time."""
SECONDS_TO_JOIN = 10.0
"""Most seconds that a release waits for a running renewal."""
LOOKS = 10
"""How often an acquirer looks at another machine's lease within the time of one renewal."""


class LostError(ResourceError):
    """Another process took over a lease."""


@dataclass(frozen=True)
class Holder:
    """Content of the lease object."""

    token: str
    """Identifies one acquisition; empty for a released lease."""
    who: str
    seconds: float
    renewals: int = 0
    """Changes the content, and so the etag, with every renewal."""
    machine: str = ""
    """Boot id and pid namespace of the machine; empty if unknown."""
    process: int = 0

    def encoded(self) -> bytes:
        """Return the object's bytes."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decoded(cls, data: bytes, key: str) -> Self:
        """Parse an object's bytes. Raises `DataError` if they are no lease."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise DataError(f"{key} is no lease ({error}); delete it if nothing uses it") from error

    @property
    def here(self) -> bool:
        """Whether this is a process of this machine."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def dead(self) -> bool:
        """Whether this is a process of this machine that has died."""
        return self.here and not Path(f"/proc/{self.process}").exists()


class Lease:
    """A lease on the object `key`; as a context manager, acquired on entry and released on exit."""

    def __init__(self, storage: Storage, key: str, seconds: float = SECONDS) -> None:
        self.storage, self.key, self.seconds = storage, key, seconds
        self.who = f"{socket.gethostname()}, process {os.getpid()}"
        self._holder = Holder("", self.who, seconds)
        self._etag = ""
        self._lost = ""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lease and renew it in the background.

        A lease that expired, was released or belongs to a process of this machine that was killed is taken over. Raises
        `BusyError` that names the holder if another one lives: at once on this machine, at its next renewal on another. If
        none comes, the machine is gone, and the lease is taken over as it expires: a job that is put back into the queue
        because its machine failed goes on by itself.
        """
        self._holder = Holder(uuid.uuid4().hex, self.who, self.seconds, machine=_machine(), process=os.getpid())
        self._etag, self._lost = self._take(), ""
        self._ended.clear()
        self._thread = threading.Thread(target=self._renew, name=f"lease {self.key}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `LostError` if another process took over the lease because the storage was unreachable for too long.

        Makes no request. While the storage is down for everyone, the holder keeps the lease.
        """
        if self._lost:
            raise LostError(self._lost)

    def release(self) -> None:
        """Release the lease; if the storage does not answer, it expires later. Never raises."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(SECONDS_TO_JOIN)
            self._thread = None
        if self._holder.token and not self._lost:
            released = Holder("", self.who, 0.0, self._holder.renewals + 1)
            try:
                self.storage.put(self.key, released.encoded(), etag=self._etag)
            except (ResourceError, DataError) as error:
                print(f"warning: cannot release the lease {self.key}, which will expire: {error}", file=sys.stderr)
        self._holder = Holder("", self.who, self.seconds)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def _take(self) -> str:
        """Write this holder unless another process holds the lease, and return the etag."""
        try:
            return self.storage.put(self.key, self._holder.encoded(), absent=True)
        except ConflictError:
            first = found = self.storage.get(self.key)
        while True:
            other = Holder.decoded(found.data, self.key)
            if other.token == self._holder.token:
                return found.etag
            left = other.seconds - found.age
            if not other.token or other.dead or left <= 0:
                return self._replace(found.etag, self._holder)
            held = f"{other.who} holds the lease {self.key}"
            if other.here or found.etag != first.etag:
                raise BusyError(f"{held} and lives; wait for it or stop it")
            if found is first:
                print(f"{held}; if it does not renew it within {left:.0f} s, it is dead and replaced", file=sys.stderr)
            time.sleep(min(left, self.seconds / RENEWALS / LOOKS))
            found = self.storage.get(self.key)

    def _replace(self, etag: str, holder: Holder) -> str:
        """Replace the object with `etag` by `holder`, unless it is there already, and return the new etag."""
        try:
            return self.storage.put(self.key, holder.encoded(), etag=etag)
        except (ConflictError, DataError) as error:
            content = self.storage.get(self.key)
            found = Holder.decoded(content.data, self.key)
            if found == holder:
                return content.etag
            raise LostError(f"{found.who} took over {self.key}; this process stops") from error

    def _renew(self) -> None:
        while not self._ended.wait(self.seconds / RENEWALS):
            renewed = replace(self._holder, renewals=self._holder.renewals + 1)
            try:
                self._etag = self._replace(self._etag, renewed)
            except (LostError, DataError) as error:
                self._lost = str(error)
                return
            except ResourceError:  # temporary; the next attempt finds out what happened
                continue
            self._holder = renewed


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
