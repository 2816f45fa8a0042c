"""A lock among machines that share nothing but a bucket: held by renewing it, free again once its holder stopped doing so.

The object says who holds it. It is written only on the condition that it is absent, or still as it was read, which the server
decides; ages are by the server's clock alone. A released lease stays as an object that says so: not every S3 deletes on a
condition.
"""

import json
import os
import socket
import sys
import threading
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from sfd_core.host.errors import BusyError, DataError, ResourceError
from sfd_core.storage.bucket import ConflictError, Storage

SECONDS = 300.0
"""How long a lease holds without renewal; longer than a storage is down now and then."""
RENEWALS = 5
"""Attempts to renew within that time."""
SECONDS_TO_JOIN = 10.0
"""How long a release waits for a renewal that is under way."""


class LostError(ResourceError):
    """Another one took a lease over."""


@dataclass(frozen=True)
class Holder:
    """Content of the object."""

    token: str
    """Of one acquisition; empty for a released lease."""
    who: str
    seconds: float
    renewals: int = 0
    """Makes every renewal another content, hence another etag."""
    machine: str = ""
    """Names the boot of a machine and the space of its process numbers; empty where the system does not tell."""
    process: int = 0

    def encoded(self) -> bytes:
        """Return the object's bytes."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decoded(cls, data: bytes, key: str) -> Self:
        """Read an object's bytes; raises `DataError` if they are no lease."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise DataError(f"{key} is no lease ({error}); delete it if nobody needs it") from error

    @property
    def dead(self) -> bool:
        """Whether this is known to be a process of this very machine that is no more: killed, it could not release anything."""
        return bool(self.machine) and self.machine == _machine() and not Path(f"/proc/{self.process}").exists()


class Lease:
    """One named piece of work in a bucket; as a context manager, acquired on entry and released on exit."""

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

        Raises `BusyError` that names the holder if another one has it, at once. A lease that expired, was released or
        belongs to a process of this machine that was killed is taken over.
        """
        self._holder = Holder(uuid.uuid4().hex, self.who, self.seconds, machine=_machine(), process=os.getpid())
        self._etag, self._lost = self._taken(), ""
        self._ended.clear()
        self._thread = threading.Thread(target=self._renew, name=f"lease {self.key}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `LostError` if another one took the lease over: the storage could not be reached for too long.

        Costs no request. While the storage does not answer anyone, the holder goes on: nobody else can take the lease then.
        """
        if self._lost:
            raise LostError(self._lost)

    def release(self) -> None:
        """Let others take the lease, at once if the storage answers, else when it expires. Never raises."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(SECONDS_TO_JOIN)
            self._thread = None
        if self._holder.token and not self._lost:
            released = Holder("", self.who, 0.0, self._holder.renewals + 1)
            try:
                self.storage.put(self.key, released.encoded(), etag=self._etag)
            except (ResourceError, DataError) as error:
                print(f"warning: the lease {self.key} was not released and expires by itself: {error}", file=sys.stderr)
        self._holder = Holder("", self.who, self.seconds)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def _taken(self) -> str:
        """Write the own holder where nobody else may be, and return the object's etag."""
        try:
            return self.storage.put(self.key, self._holder.encoded(), absent=True)
        except ConflictError:
            content = self.storage.get(self.key)
        other = Holder.decoded(content.data, self.key)
        if other.token == self._holder.token:
            return content.etag
        left = other.seconds - content.age
        if other.token and left > 0 and not other.dead:
            raise BusyError(
                f"{other.who} holds the lease {self.key}; wait for it or stop it (if it died, its lease ends in {left:.0f} s)"
            )
        return self._replace(content.etag, self._holder)

    def _replace(self, etag: str, holder: Holder) -> str:
        """Put `holder` in the place of the object of `etag`, or find it there already, and return the new etag."""
        try:
            return self.storage.put(self.key, holder.encoded(), etag=etag)
        except (ConflictError, DataError) as error:
            content = self.storage.get(self.key)
            found = Holder.decoded(content.data, self.key)
            if found == holder:
                return content.etag
            raise LostError(f"{found.who} has taken over {self.key}; this one stops") from error

    def _renew(self) -> None:
        while not self._ended.wait(self.seconds / RENEWALS):
            renewed = replace(self._holder, renewals=self._holder.renewals + 1)
            try:
                self._etag = self._replace(self._etag, renewed)
            except (LostError, DataError) as error:
                self._lost = str(error)
                return
            except ResourceError:  # it may pass, and the next attempt finds out what happened
                continue
            self._holder = renewed


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
