"""Calls that begin together, each in a thread of its own."""

import threading
from collections.abc import Callable, Sequence

from sfd_core.host.errors import ResourceError


def at_once(calls: Sequence[Callable[[], object]]) -> list[str]:
    """Return what became of each, in any order: "done", or the name of the `ResourceError` that it raised."""
    together, outcomes = threading.Barrier(len(calls)), []

    def run(call: Callable[[], object]) -> None:
        together.wait()
        try:
            call()
            outcomes.append("done")
        except ResourceError as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=run, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
