"""Items made in a thread of their own before they are asked for."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

SHAPES_RESULTS = True

T = TypeVar("T")

LOOK_AHEAD = 2


def ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """Yield `items`, made in a thread of their own, two of them before they are asked for."""
    source, end = iter(items), object()
    pool = ThreadPoolExecutor(1)
    try:
        pending: deque[Future[object]] = deque(pool.submit(next, source, end) for _ in range(LOOK_AHEAD))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, source, end))
            yield cast(T, item)
    finally:
        pool.shutdown(cancel_futures=True)
