"""Which rung of the rank and data ladders a concept tries next (E2GAN 3.3, 3.4). Pure: no torch, no Ray, no clock.

A rung is (rank multiplier, training pairs). The ladder asks for a trial, gets its record, and asks for the next,
until it picks the smallest rung within the tolerance of the best. What it asks for depends on the records alone,
so replaying stored records brings a killed search back to where it was.

Example:
    >>> ladder = ConceptLadder("oil", LadderRules((1, 2, 4), (50, 400)))
    >>> match ladder.next():
    ...     case TrialSpec() as spec: ladder.report(run(spec))
    ...     case Done(rung): print(rung)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from e2gan_cluster.config import SearchConfig
from e2gan_cluster.search.records import TrialRecord, TrialSpec

Order = Literal["rank-first", "data-first", "joint"]
Climb = Literal["up", "target"]
Mode = Literal["ladder", "fixed", "grid"]


class Rung(NamedTuple):
    """One cell of the search: start ranks times `multiplier`, `size` training pairs."""

    multiplier: int
    size: int


@dataclass(frozen=True)
class LadderRules:
    """How one concept climbs.

    Attributes:
        multipliers: Rungs of the rank ladder, rising.
        sizes: Rungs of the data ladder, pairs, rising.
        mode: ``ladder``; ``fixed``: the largest rung only; ``grid``: every rung, none stopped early.
        order: Ladder climbed first; ``joint`` climbs both in step.
        climb: ``up``: from the smallest, until a rung no longer gains; ``target``: largest first, then up from the
            smallest until one is within tolerance of it.
        tolerance: Relative.
        stop_fraction: Share of a trial after which a hopeless one stops; 0 = never.
        stop_margin: Relative: worse than the best rung at the same point by more = hopeless.
        seeds: Trials per rung.
    """

    multipliers: tuple[int, ...]
    sizes: tuple[int, ...]
    mode: Mode = "ladder"
    order: Order = "rank-first"
    climb: Climb = "up"
    tolerance: float = 0.02
    stop_fraction: float = 0.25
    stop_margin: float = 0.25
    seeds: int = 1

    def __post_init__(self) -> None:
        for name, rungs in (("multipliers", self.multipliers), ("sizes", self.sizes)):
            if not rungs or list(rungs) != sorted(set(rungs)) or rungs[0] <= 0:
                raise ValueError(f"{name} must be rising and above 0, got {rungs}")

    @classmethod
    def of(cls, search: SearchConfig, available: int, skip: tuple[int, int] = (0, 0)) -> "LadderRules":
        """Rules of a config for a concept.

        Args:
            search: The search section.
            available: Training pairs the concept has; larger data rungs are cut to it.
            skip: Rank and data rungs left out at the bottom (a neighbour needed more); the last always stays.
        """
        multipliers = sorted(set(search.rank_multipliers))
        sizes = sorted({min(size, available) for size in search.data_sizes})
        return cls(
            multipliers=tuple(multipliers[min(skip[0], len(multipliers) - 1) :]),
            sizes=tuple(sizes[min(skip[1], len(sizes) - 1) :]),
            mode=search.mode,
            order=search.order,
            climb=search.climb,
            tolerance=search.tolerance,
            stop_fraction=search.early_stop_fraction,
            stop_margin=search.early_stop_margin,
            seeds=search.seed_count,
        )


@dataclass(frozen=True)
class Wait:
    """Nothing to start before a running trial has reported."""


@dataclass(frozen=True)
class Done:
    """The search is over.

    Attributes:
        rung: The pick.
        trial_id: Trial whose adapter is the result: the best seed of the pick.
    """

    rung: Rung
    trial_id: str


class _NeedError(Exception):
    """The plan cannot go on without the score of these rungs."""

    def __init__(self, *rungs: Rung) -> None:
        super().__init__(rungs)
        self.rungs = rungs


class ConceptLadder:
    """State of one concept's search: the records so far and the trials handed out.

    Args:
        concept: Name of the concept.
        rules: How it climbs.
        init: Key prefix of the adapter that every trial starts from.
    """

    def __init__(self, concept: str, rules: LadderRules, init: str | None = None) -> None:
        self.concept = concept
        self.rules = rules
        self.init = init
        self.records: dict[str, TrialRecord] = {}
        self.running: set[str] = set()

    def next(self) -> TrialSpec | Wait | Done:
        """The next trial to start, marked as running; or `Wait`; or `Done`."""
        try:
            rung = self._pick()
        except _NeedError as need:
            for rung in need.rungs:
                for seed_index in range(self.rules.seeds):
                    spec = TrialSpec(self.concept, rung.multiplier, rung.size, seed_index, self._stops(), self.init)
                    if spec.trial_id not in self.records and spec.trial_id not in self.running:
                        self.running.add(spec.trial_id)
                        return spec
            return Wait()
        best = min(self._of(rung), key=lambda record: (record.metric, record.spec.seed_index))
        return Done(rung, best.spec.trial_id)

    def report(self, record: TrialRecord) -> None:
        """Take in a finished trial, run now or read back from the store."""
        self.running.discard(record.spec.trial_id)
        self.records[record.spec.trial_id] = record

    def abandon(self, trial_id: str) -> None:
        """A trial that was handed out did not finish; it may be handed out again."""
        self.running.discard(trial_id)

    def _of(self, rung: Rung) -> list[TrialRecord]:
        found = (self.records.get(TrialSpec(self.concept, *rung, i).trial_id) for i in range(self.rules.seeds))
        return [record for record in found if record is not None]

    def _score(self, rung: Rung) -> float | None:
        """Mean metric over the seeds, infinite for a hopeless rung, None if trials are missing."""
        records = self._of(rung)
        if len(records) < self.rules.seeds:
            return None
        if any(record.state == "hopeless" for record in records):
            return float("inf")
        return sum(record.metric for record in records) / len(records)

    def _scores(self, rungs: Sequence[Rung]) -> dict[Rung, float]:
        return {rung: score for rung in rungs if (score := self._score(rung)) is not None}

    def _cells(self) -> list[Rung]:
        return [Rung(m, n) for m in self.rules.multipliers for n in self.rules.sizes]

    def _stops(self) -> tuple[tuple[float, float], ...]:
        """Where the next trial is hopeless: worse than the best finished rung was at the same point."""
        rules = self.rules
        scores = self._scores(self._cells())
        if rules.mode != "ladder" or not rules.stop_fraction or not scores:
            return ()
        best = self._of(min(scores, key=lambda rung: (scores[rung], rung)))
        values = [value for record in best if (value := record.at(rules.stop_fraction)) is not None]
        if not values:
            return ()
        mean = sum(values) / len(values)
        return ((rules.stop_fraction, mean + rules.stop_margin * abs(mean)),)

    def _pick(self) -> Rung:
        ranks, sizes = self.rules.multipliers, self.rules.sizes
        if self.rules.mode == "fixed":
            return self._target([Rung(ranks[-1], sizes[-1])])
        if self.rules.mode == "grid":
            return self._all(self._cells())
        climb = self._up if self.rules.climb == "up" else self._target
        if self.rules.order == "joint":
            steps = max(len(ranks), len(sizes))
            return climb([Rung(_scaled(ranks, i, steps), _scaled(sizes, i, steps)) for i in range(steps)])
        # The second ladder's top is the first ladder's pick, known already: it is climbed towards that target.
        if self.rules.order == "rank-first":
            multiplier = climb([Rung(m, sizes[-1]) for m in ranks]).multiplier
            return self._target([Rung(multiplier, n) for n in sizes])
        size = climb([Rung(ranks[-1], n) for n in sizes]).size
        return self._target([Rung(m, size) for m in ranks])

    def _need(self, rung: Rung) -> float:
        score = self._score(rung)
        if score is None:
            raise _NeedError(rung)
        return score

    def _up(self, rungs: Sequence[Rung]) -> Rung:
        best = self._need(rungs[0])
        tried = [rungs[0]]
        for rung in rungs[1:]:
            score = self._need(rung)
            tried.append(rung)
            if not score < best - self.rules.tolerance * abs(best):
                break
            best = score
        return self._smallest(self._scores(tried))

    def _target(self, rungs: Sequence[Rung]) -> Rung:
        tried = {rungs[-1]: self._need(rungs[-1])}
        for rung in rungs[:-1]:
            tried[rung] = self._need(rung)
            if self._smallest(tried) == rung:
                return rung
        return self._smallest(tried)

    def _all(self, rungs: Sequence[Rung]) -> Rung:
        missing = [rung for rung in rungs if self._score(rung) is None]
        if missing:
            raise _NeedError(*missing)
        return self._smallest(self._scores(rungs))

    def _smallest(self, scores: dict[Rung, float]) -> Rung:
        best = min(scores.values())
        return min(r for r, score in scores.items() if score <= best + self.rules.tolerance * abs(best))


def _scaled(rungs: Sequence[int], step: int, steps: int) -> int:
    """Rung of a short ladder that is climbed in step with one of ``steps`` rungs."""
    return rungs[-1] if steps == 1 else rungs[round(step * (len(rungs) - 1) / (steps - 1))]
