"""Who may work on which shard: counts attempts, gives up on shards that kill their process, stops hopeless concepts.

Lives in one small Ray actor beside the workers. A worker that dies can't report; that it began a shard and never ended
it is what tells.
"""

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

Decision = Literal["go", "give-up", "stopped"]
MAX_DEATHS = 2


@dataclass(frozen=True)
class Incident:
    """Something that went wrong and was mended or given up.

    Attributes:
        concept: Whose shard.
        shard: Which.
        what: For people.
    """

    concept: str
    shard: str
    what: str


class Gate:
    """Attempts per shard and stopped concepts.

    Args:
        timeout_s: After this a worker ends itself.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._started: dict[tuple[str, str], float] = {}
        self._deaths: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._stopped: set[str] = set()
        self._incidents: list[Incident] = []

    def begin(self, concept: str, shard: str) -> tuple[Decision, str]:
        """A worker asks before it starts.

        Returns:
            What to do, and why where it is not to go on.
        """
        if concept in self._stopped:
            return "stopped", f"concept {concept} was stopped"
        key = (concept, shard)
        before = self._started.pop(key, None)
        if before is not None:
            elapsed_s = time.monotonic() - before
            hung = elapsed_s >= self._timeout_s
            what = f"took longer than {self._timeout_s:g} s" if hung else f"its process died after {elapsed_s:.1f} s"
            self._deaths[key].append(what)
            more = len(self._deaths[key]) < MAX_DEATHS
            self._incidents.append(Incident(concept, shard, f"{what}; {'tried again' if more else 'given up'}"))
        if len(self._deaths[key]) >= MAX_DEATHS:
            return "give-up", "; ".join(self._deaths[key])
        self._started[key] = time.monotonic()
        return "go", ""

    def end(self, concept: str, shard: str) -> None:
        """A worker has finished a shard, well or not, and lives."""
        self._started.pop((concept, shard), None)

    def stop(self, concept: str) -> None:
        """No further shard of this concept is started."""
        self._stopped.add(concept)

    def incidents(self) -> list[Incident]:
        """All so far."""
        return list(self._incidents)
