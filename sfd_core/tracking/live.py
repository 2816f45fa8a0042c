"""A run that grows on a server while its training goes on.

A background thread reads the curve that the training wrote to disk. The training neither waits for it nor hears of its
failures; what it could not send is sent later from the same file.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sfd_core.host.addresses import in_a_line, public
from sfd_core.host.paths import file_digest
from sfd_core.tracking.address import is_embedded, is_reachable, store_uri
from sfd_core.tracking.curves import Curve
from sfd_core.tracking.runs import RunSpec
from sfd_core.tracking.store import COMPLETE_TAG, KEY_TAG, NAME_TAG, Store

SECONDS_BETWEEN_SENDINGS = 10.0
SECONDS_AT_THE_END = 30.0
"""How long a finished training lets the last sending take."""


@contextmanager
def follow(spec: RunSpec, history: Path, resume_key: str, every: float = SECONDS_BETWEEN_SENDINGS) -> Iterator[None]:
    """Send the curve in `history`, and `validation.csv` beside it, to the server of MLFLOW_TRACKING_URI while the block runs.

    A killed and resumed training goes on in the run of its `resume_key`. The embedded store needs no following, nor does a
    training of less than `every` seconds: `sync_run` sends everything at the end, and the training keeps the seconds that
    importing mlflow takes.
    """
    uri = store_uri()
    if is_embedded(uri):
        yield
        return
    curves = [
        Curve(history, "train", steps=spec.steps),
        Curve(history.with_name("validation.csv"), "validation", clock=history),
    ]
    follower = _Follower(uri, spec, curves, resume_key, every)
    follower.start()
    try:
        yield
    except BaseException:
        follower.end("FAILED", None)
        raise
    follower.end("FINISHED", history_key(history))


def history_key(history: Path) -> str:
    """Return what identifies a finished training: the hash of its curve, timings included."""
    return file_digest(history)[:16]


class _Follower(threading.Thread):
    def __init__(self, uri: str, spec: RunSpec, curves: Sequence[Curve], resume_key: str, every: float) -> None:
        super().__init__(name=f"follow {spec.name}", daemon=True)
        self._uri, self._spec, self._curves, self._resume_key, self._every = uri, spec, curves, resume_key, every
        self._ended = threading.Event()
        self._status, self._key = "FAILED", ""
        self._store: Store | None = None
        self._run_id = ""
        self._known: set[tuple[str, int]] | None = None
        self._log_machine: Callable[[], None] | None = None
        self._told = False

    def run(self) -> None:
        """Send what is new, again and again, and once more after the end; a training that ends sooner is not followed."""
        if self._ended.wait(self._every):
            return
        self._try(last=False)
        while not self._ended.wait(self._every):
            self._try(last=False)
        self._try(last=True)

    def end(self, status: str, key: str | None) -> None:
        """Send the rest and give up after a while; the rest of the rest is sent by `sync_run`."""
        self._status, self._key = status, key or ""
        self._ended.set()
        self.join(SECONDS_AT_THE_END)

    def _try(self, last: bool) -> None:
        try:
            if is_reachable(self._uri):
                self._send(last)
                self._told = False
                return
            reason = "it does not answer"
        except Exception as error:  # noqa: BLE001 - whatever happens to the server, the training goes on
            # a request may have arrived although its answer did not, and a server may have lost the run
            self._known = self._log_machine = self._store = None
            self._run_id = ""
            reason = in_a_line(error, self._uri)
        if not self._told:
            self._told = True
            print(
                f"{self._spec.name}: MLflow at {public(self._uri)}: {reason}; the curve is on disk and sent later",
                file=sys.stderr,
            )

    def _send(self, last: bool) -> None:
        if self._store is None:
            self._store = Store(self._uri)
        store, tags = self._store, {"sfd.resume_key": self._resume_key}
        if not self._run_id:
            history = self._curves[0].path
            key = history_key(history) if history.exists() else ""
            runs = store.find({NAME_TAG: self._spec.name, **tags})
            # a complete run of another key is that of an earlier training
            found = [run for run, has in runs if COMPLETE_TAG not in has or has.get(KEY_TAG) == key]
            self._run_id = found[0] if found else store.create(self._spec, tags)
            store.reopen(self._run_id)
        points = [point for curve in self._curves for point in curve.points()]
        if self._known is None:
            self._known = store.known(self._run_id, {point.key for point in points})
        store.send(self._run_id, points, self._known)
        self._log_machine = self._log_machine or store.watch_machine(self._run_id)
        self._log_machine()
        if last:
            store.tag(self._run_id, {KEY_TAG: self._key} if self._key else {})
            store.finish(self._run_id, self._status)
