"""The same call for many items, on threads."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_H = TypeVar("_H", bound=Hashable)
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


def parallel_map_slow(
    call: Callable[[_H], _R], items: Sequence[_H], slow: Callable[[_H], bool], workers: int = 16
) -> list[_R]:
    """`parallel_map` for items of which only some wait for a network: the others are not worth a thread each.

    Args:
        call: Must be thread-safe.
        items: Its arguments, all different.
        slow: Which of them wait.
        workers: Threads.
    """
    waiting = [item for item in items if slow(item)]
    results = dict(zip(waiting, parallel_map(call, waiting, workers), strict=True)) if waiting else {}
    return [results[item] if item in results else call(item) for item in items]
