"""Bookkeeping of one generation run: what is planned, finished, lost, and what that means for each concept.

No Ray, no teacher: reports go in, results and status records come out.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.pairs.gate import Incident
from e2gan_cluster.pairs.plan import SPLITS, ShardSpec, Split, pairs_fingerprint
from e2gan_cluster.pairs.ray_pool import ShardReport
from e2gan_cluster.pairs.rows import OK
from e2gan_cluster.pairs.shards import DoneMarker, count_statuses


@dataclass(frozen=True)
class PairsResult:
    """What a run has of one concept.

    Attributes:
        concept: Name.
        train_ok: Kept training pairs.
        heldout_ok: Kept held-out pairs.
        dropped: Rows that are not kept, by reason code.
        failure: Why the concept can't be used; None if it can.
        seconds: Worker seconds that this run spent on the concept.
    """

    concept: str
    train_ok: int
    heldout_ok: int
    dropped: dict[str, int]
    failure: str | None
    seconds: float


@dataclass
class ConceptLedger:
    """One concept's planned and finished shards.

    Attributes:
        concept: The concept.
        planned: Split -> shards, in order.
        markers: Finished shards by name.
        lost: Reports of shards that can't be finished in this run.
        made: Shards finished in this run.
        seconds: See `PairsResult`.
        stopped: No further shards are started.
        incidents: Damaged shards found, retries.
        imported: The pairs came from elsewhere; nothing is ever made.
    """

    concept: Concept
    planned: dict[Split, list[ShardSpec]]
    markers: dict[str, DoneMarker] = field(default_factory=dict)
    lost: list[ShardReport] = field(default_factory=list)
    made: int = 0
    seconds: float = 0.0
    stopped: bool = False
    incidents: list[str] = field(default_factory=list)
    imported: bool = False

    @property
    def rows(self) -> int:
        """Planned rows of both splits."""
        return sum(len(spec.items) for specs in self.planned.values() for spec in specs)

    def split_markers(self, split: Split) -> list[DoneMarker]:
        """Finished shards of a split, in order."""
        return [self.markers[spec.name] for spec in self.planned[split] if spec.name in self.markers]

    def complete(self, split: Split) -> bool:
        """Every shard of the split is finished."""
        return len(self.split_markers(split)) == len(self.planned[split])

    def counts(self) -> dict[str, int]:
        """Rows by status; rows of lost shards count as `shard-<failure>`."""
        counts = Counter(count_statuses(list(self.markers.values())))
        for report in self.lost:
            if report.failure != "stopped":
                counts[f"shard-{report.failure}"] += report.rows
        return dict(sorted(counts.items()))

    def dropped(self) -> dict[str, int]:
        """Rows that are not kept, by reason code."""
        return {status: count for status, count in self.counts().items() if status != OK}

    def too_many_dropped(self, limit: float) -> bool:
        """More rows than ``limit`` of all planned are dropped for other reasons than a bad photo."""
        dropped = sum(count for status, count in self.dropped().items() if not status.startswith("photo-"))
        return dropped > limit * self.rows

    def failure(self, limit: float, splits: Sequence[Split]) -> str | None:
        """Why the concept can't be used; None if it can."""
        counts = ", ".join(f"{count} {status}" for status, count in self.counts().items())
        reasons = list(dict.fromkeys(report.reason for report in self.lost if report.failure != "stopped"))
        if self.too_many_dropped(limit):
            text = f"more than {limit:.0%} of {self.rows} pairs were dropped ({counts})"
            return f"{text}: {reasons[0]}" if reasons else text
        if self.lost:
            names = ", ".join(report.shard for report in self.lost[:3])
            return f"{len(self.lost)} shards could not be made ({names}): {reasons[0] if reasons else 'stopped'}"
        for split in splits:
            if not count_statuses(self.split_markers(split)).get(OK):
                return f"no usable {split} pair ({counts or 'no photos in this split'})"
        return None


class Ledger:
    """All concepts of a run.

    Args:
        config: Settings.
        concepts: One ledger each.
    """

    def __init__(self, config: RunConfig, concepts: Sequence[ConceptLedger]) -> None:
        self.config = config
        self.concepts = {ledger.concept.name: ledger for ledger in concepts}
        self.start_s = time.monotonic()
        self.rows_made = 0

    def add(self, report: ShardReport) -> bool:
        """Books a report.

        Returns:
            True if its concept is hopeless now and was not before.
        """
        ledger = self.concepts[report.concept]
        ledger.seconds += report.seconds
        if report.marker is None:
            ledger.lost.append(report)
        else:
            ledger.markers[report.shard] = report.marker
            ledger.made += 1
            self.rows_made += report.rows
        if ledger.stopped or not ledger.too_many_dropped(self.config.pairs.filters.max_dropped_fraction):
            return False
        ledger.stopped = True
        return True

    def stopped(self, concept: str) -> bool:
        """No further shard of this concept is started."""
        return self.concepts[concept].stopped

    def add_incidents(self, incidents: Sequence[Incident]) -> None:
        """Books what the gate has seen."""
        for incident in incidents:
            self.concepts[incident.concept].incidents.append(f"{incident.shard}: {incident.what}")

    def pairs_per_s(self) -> float:
        """Rows made per second since the start of this run."""
        return self.rows_made / max(time.monotonic() - self.start_s, 1e-9)

    def result(self, concept: str, splits: Sequence[Split]) -> PairsResult:
        """What the run has of one concept."""
        ledger = self.concepts[concept]
        ok = {split: count_statuses(ledger.split_markers(split)).get(OK, 0) for split in SPLITS}
        failure = ledger.failure(self.config.pairs.filters.max_dropped_fraction, splits)
        return PairsResult(concept, ok["train"], ok["heldout"], ledger.dropped(), failure, ledger.seconds)


def status_record(ledger: ConceptLedger, result: PairsResult, config: RunConfig, seconds_before: float = 0.0) -> bytes:
    """The concept's `status.json`; ``seconds_before`` were spent on it by earlier runs."""
    per_split: Mapping[Split, Any] = {
        split: {
            "shards": len(specs),
            "shards_done": len(ledger.split_markers(split)),
            "pairs": sum(len(spec.items) for spec in specs),
            "counts": count_statuses(ledger.split_markers(split)),
        }
        for split, specs in ledger.planned.items()
    }
    record = {
        "concept": result.concept,
        "prompt": ledger.concept.prompt,
        "fingerprint": pairs_fingerprint(config, ledger.concept),
        "state": "failed" if result.failure else "done",
        "failure": result.failure,
        "counts": ledger.counts(),
        "splits": per_split,
        "lost_shards": [{"shard": r.shard, "failure": r.failure, "reason": r.reason} for r in ledger.lost],
        "incidents": ledger.incidents,
        "seconds": round(result.seconds + seconds_before, 3),
    }
    return json.dumps(record, indent=1).encode()
