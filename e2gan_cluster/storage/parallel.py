"""The same call for many items, on threads."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def parallel_map(call: Callable[[_T], _R], items: Iterable[_T], workers: int = 16) -> Iterator[_R]:
    """Results in the order of items; the first error ends it and what has not begun is not begun.

    Args:
        call: Must be thread-safe.
        items: Its arguments.
        workers: Threads.
    """
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        yield from pool.map(call, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
