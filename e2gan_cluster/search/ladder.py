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

import math
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
        rank_screen: Share of a training after which rungs of the rank ladder are compared; 1 = at its end.
        data_screen: The same for the data ladder, and for both in step. Only the pick is trained to its end.
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
    rank_screen: float = 1.0
    data_screen: float = 1.0

    def __post_init__(self) -> None:
        for name, share in (("rank_screen", self.rank_screen), ("data_screen", self.data_screen)):
            if not 0 < share <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {share}")
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
            rank_screen=search.rank_screen,
            data_screen=search.data_screen,
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
    """The plan cannot go on without the score of these rungs, trained this far."""

    def __init__(self, *rungs: Rung, until: float) -> None:
        super().__init__(rungs)
        self.rungs = rungs
        self.until = until


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
            self._need(rung, 1.0)
        except _NeedError as need:
            for rung in need.rungs:
                for spec in self._specs(rung, need.until):
                    if spec.trial_id not in self.records and spec.trial_id not in self.running:
                        self.running.add(spec.trial_id)
                        return spec
            return Wait()
        best = min(self._of(rung, 1.0), key=lambda record: (record.metric, record.spec.seed_index))
        return Done(rung, best.spec.trial_id)

    def report(self, record: TrialRecord) -> None:
        """Take in a finished trial, run now or read back from the store."""
        self.running.discard(record.spec.trial_id)
        self.records[record.spec.trial_id] = record

    def abandon(self, trial_id: str) -> None:
        """A trial that was handed out did not finish; it may be handed out again."""
        self.running.discard(trial_id)

    def _specs(self, rung: Rung, until: float) -> list[TrialSpec]:
        stops = self._stops() if self.rules.rank_screen == self.rules.data_screen == 1 else ()
        shares = {self.rules.rank_screen, self.rules.data_screen}
        before = max((s for s in shares if s < until and len(self._of(rung, s)) == self.rules.seeds), default=0.0)
        return [
            TrialSpec(self.concept, rung.multiplier, rung.size, seed, stops, self.init, until=until, after=before)
            for seed in range(self.rules.seeds)
        ]

    def _of(self, rung: Rung, until: float) -> list[TrialRecord]:
        specs = (TrialSpec(self.concept, *rung, seed, until=until) for seed in range(self.rules.seeds))
        return [record for spec in specs if (record := self.records.get(spec.trial_id)) is not None]

    def _metrics(self, rung: Rung, until: float) -> list[float]:
        """Metric of every seed at a share of the training, of this trial or a longer one; infinite for a hopeless."""
        metrics = [math.inf if record.state == "hopeless" else record.metric for record in self._of(rung, until)]
        longer = sorted({self.rules.rank_screen, self.rules.data_screen, 1.0})
        for share in longer if len(metrics) < self.rules.seeds else ():
            points = [record.at(until) for record in self._of(rung, share) if share > until]
            known = [point for point in points if point is not None]
            if len(known) == self.rules.seeds:
                return known
        return metrics

    def _score(self, rung: Rung, until: float) -> float | None:
        """Mean metric over the seeds, infinite for a hopeless rung, None if trials are missing."""
        metrics = self._metrics(rung, until)
        return sum(metrics) / len(metrics) if len(metrics) == self.rules.seeds else None

    def _scores(self, rungs: Sequence[Rung], until: float) -> dict[Rung, float]:
        return {rung: score for rung in rungs if (score := self._score(rung, until)) is not None}

    def _cells(self) -> list[Rung]:
        return [Rung(m, n) for m in self.rules.multipliers for n in self.rules.sizes]

    def _stops(self) -> tuple[tuple[float, float], ...]:
        """Where the next trial is hopeless: worse than the best finished rung was at the same point."""
        rules = self.rules
        scores = self._scores(self._cells(), 1.0)
        if rules.mode != "ladder" or not rules.stop_fraction or not scores:
            return ()
        best = self._of(min(scores, key=lambda rung: (scores[rung], rung)), 1.0)
        values = [value for record in best if (value := record.at(rules.stop_fraction)) is not None]
        if not values:
            return ()
        mean = sum(values) / len(values)
        return ((rules.stop_fraction, mean + rules.stop_margin * abs(mean)),)

    def _pick(self) -> Rung:
        ranks, sizes = self.rules.multipliers, self.rules.sizes
        if self.rules.mode == "fixed":
            return Rung(ranks[-1], sizes[-1])
        if self.rules.mode == "grid":
            return self._all(self._cells())
        climb = self._up if self.rules.climb == "up" else self._target
        rank_screen, data_screen = self.rules.rank_screen, self.rules.data_screen
        if self.rules.order == "joint":
            steps = max(len(ranks), len(sizes))
            rungs = [Rung(_scaled(ranks, i, steps), _scaled(sizes, i, steps)) for i in range(steps)]
            return climb(rungs, data_screen)
        # The second ladder's top is the first ladder's pick, begun already: it is climbed towards that target.
        if self.rules.order == "rank-first":
            multiplier = climb([Rung(m, sizes[-1]) for m in ranks], rank_screen).multiplier
            return self._target([Rung(multiplier, n) for n in sizes], data_screen)
        size = climb([Rung(ranks[-1], n) for n in sizes], data_screen).size
        return self._target([Rung(m, size) for m in ranks], rank_screen)

    def _need(self, rung: Rung, until: float) -> float:
        score = self._score(rung, until)
        if score is None:
            raise _NeedError(rung, until=until)
        return score

    def _up(self, rungs: Sequence[Rung], until: float) -> Rung:
        if len(rungs) == 1:
            return rungs[0]
        best = self._need(rungs[0], until)
        tried = [rungs[0]]
        for rung in rungs[1:]:
            score = self._need(rung, until)
            tried.append(rung)
            if not score < best - self._slack(best, until):
                break
            best = score
        return self._smallest(self._scores(tried, until), until)

    def _target(self, rungs: Sequence[Rung], until: float) -> Rung:
        if len(rungs) == 1:
            return rungs[0]
        tried = {rungs[-1]: self._need(rungs[-1], until)}
        for rung in rungs[:-1]:
            tried[rung] = self._need(rung, until)
            if self._smallest(tried, until) == rung:
                return rung
        return self._smallest(tried, until)

    def _all(self, rungs: Sequence[Rung]) -> Rung:
        missing = [rung for rung in rungs if self._score(rung, 1.0) is None]
        if missing:
            raise _NeedError(*missing, until=1.0)
        return self._smallest(self._scores(rungs, 1.0), 1.0)

    def _smallest(self, scores: dict[Rung, float], until: float) -> Rung:
        best = min(scores.values())
        return min(r for r, score in scores.items() if score <= best + self._slack(best, until))

    def _slack(self, best: float, until: float) -> float:
        """What counts as equal: the tolerance, or a standard error between seeds where that is more."""
        return max(self.rules.tolerance, self._noise(until)) * abs(best)

    def _noise(self, until: float) -> float:
        """Standard error of the difference of two rungs, relative, pooled over all rungs so far; 0 with one seed."""
        seeds = self.rules.seeds
        variances = []
        for rung in self._scores(self._cells(), until) if seeds > 1 else ():
            metrics = self._metrics(rung, until)
            mean = sum(metrics) / len(metrics)
            if mean and math.isfinite(mean):
                variances.append(sum((m - mean) ** 2 for m in metrics) / (seeds - 1) / mean**2)
        return math.sqrt(2 / seeds * sum(variances) / len(variances)) if variances else 0.0


def _scaled(rungs: Sequence[int], step: int, steps: int) -> int:
    """Rung of a short ladder that is climbed in step with one of ``steps`` rungs."""
    return rungs[-1] if steps == 1 else rungs[round(step * (len(rungs) - 1) / (steps - 1))]
