"""Retries with jitter under one deadline, for stores behind a network."""

import random
import time
from dataclasses import dataclass

from e2gan_cluster.errors import StoreError


@dataclass(frozen=True)
class NetworkOptions:
    """How patient a store behind a network is.

    Attributes:
        deadline_s: One operation gives up after this long without success; transferred bytes extend it.
        connect_timeout_s: Limit of one connection attempt.
        read_timeout_s: Limit of one silence of the server.
        first_wait_s: Mean wait before the first retry is half of this; it doubles each time.
        max_wait_s: Longest wait between two attempts.
        min_bytes_per_s: A transfer slower than this runs into the deadline.
        multipart_bytes: Files of at least this size are uploaded in parts.
        part_bytes: Size of a part; S3 wants at least 5 MiB.
        connections: Parallel connections of one store.
    """

    deadline_s: float = 120.0
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 20.0
    first_wait_s: float = 0.2
    max_wait_s: float = 8.0
    min_bytes_per_s: float = 32 * 1024
    multipart_bytes: int = 64 << 20
    part_bytes: int = 16 << 20
    connections: int = 32


class Retry:
    """The attempts of one operation.

    Args:
        options: Deadline and waits.
        what: The operation in words, for the error.
    """

    def __init__(self, options: NetworkOptions, what: str) -> None:
        self._options = options
        self.what = what
        self._start_s = time.monotonic()
        self._end_s = self._start_s + options.deadline_s
        self.failures = 0

    def progress(self, num_bytes: int) -> None:
        """Bytes came through: extend the deadline by the time they may take.

        Raises:
            StoreError: They came so slowly that the deadline is over all the same.
        """
        self._end_s += num_bytes / self._options.min_bytes_per_s
        if time.monotonic() > self._end_s:
            rate = self._options.min_bytes_per_s / 1024
            raise self._error(f"the server sends less than {rate:.0f} KiB/s")

    def wait(self, reason: str) -> None:
        """Sleep before the next attempt ("full jitter", doubling).

        Raises:
            StoreError: No time is left; says how often and why the operation failed.
        """
        self.failures += 1
        ceiling_s = min(self._options.max_wait_s, self._options.first_wait_s * 2 ** min(self.failures - 1, 10))
        wait_s = random.uniform(0, ceiling_s)
        if time.monotonic() + wait_s > self._end_s:
            raise self._error(reason)
        time.sleep(wait_s)

    def _error(self, reason: str) -> StoreError:
        elapsed_s = time.monotonic() - self._start_s
        return StoreError(
            f"{self.what}: gave up after {elapsed_s:.0f} s and {max(self.failures, 1)} attempts: {reason}",
            "check that the server is up and reachable, then run the same command again: finished work is kept",
        )
