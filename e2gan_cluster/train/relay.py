"""Between the workers of a training on Ray and its driver.

A module of its own, so that the actor starts without torch.

Example:
    relay = ray.remote(num_cpus=0)(Relay).remote()
    RayEvents(relay).emit(Event("note", text="hello"))
"""

import time
from typing import Any

from e2gan_cluster import busy
from e2gan_cluster.errors import TrainingError, UserError
from e2gan_cluster.train.events import Event

_CHECK_S = 1.0


class Relay:
    """An actor between the workers and the driver: a queue of events, and the word that the run has ended."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._work_s = 0.0
        self._failure: UserError | None = None
        self._ended = False

    def push(self, event: Event, work_s: float) -> bool:
        """Queues an event, with the seconds worked since the last; answers whether the run has ended."""
        self._events.append(event)
        self._work_s += work_s
        return self._ended

    def drain(self) -> tuple[list[Event], float]:
        """All events since the last call, and the seconds worked."""
        events, self._events = self._events, []
        work_s, self._work_s = self._work_s, 0.0
        return events, work_s

    def fail(self, error: UserError) -> None:
        """A failure that another attempt would repeat."""
        self._failure = self._failure or error
        self._ended = True

    def failure(self) -> UserError | None:
        """The failure, if there was one."""
        return self._failure

    def end(self) -> None:
        """The driver wants no more."""
        self._ended = True

    def ended(self) -> bool:
        """Whether attempts make sense no more: a worker's first question."""
        return self._ended


class RayEvents:
    """Sends a worker's events to the relay.

    Args:
        relay: Handle of the `Relay` actor.
    """

    def __init__(self, relay: Any) -> None:
        self._relay = relay
        self._checked_s = time.monotonic()

    def emit(self, event: Event) -> None:
        """Passes an event on.

        Raises:
            TrainingError: The driver wants no more.
        """
        import ray

        if ray.get(self._relay.push.remote(event, busy.take_s())):
            raise TrainingError("the run was stopped")

    def check(self) -> None:
        """Asks about once a second whether the run is to end.

        Raises:
            TrainingError: The driver wants no more.
        """
        import ray

        if time.monotonic() - self._checked_s < _CHECK_S:
            return
        if ray.get(self._relay.ended.remote()):
            raise TrainingError("the run was stopped")
        self._checked_s = time.monotonic()
