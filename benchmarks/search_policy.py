"""Which order, climb, tolerance and early stop: least training for the same quality, on measured learning curves.

First every rung of every concept is trained once (grid; resumable, kept in the folder); then every policy is replayed
on these records. Printed per policy: training in final trainings, quality against the best rung, adapter size.

python -m benchmarks.search_policy --concepts 8 --photos FOLDER
python -m benchmarks.search_policy --quick
"""

import argparse
import itertools
import statistics
import time
from dataclasses import dataclass, replace

from benchmarks.adapt_world import AdaptWorld, add_options, open_world
from e2gan_cluster.concepts import Concept
from e2gan_cluster.pairs.shards import pairs_digest
from e2gan_cluster.search.ladder import ConceptLadder, Done, LadderRules, Rung
from e2gan_cluster.search.records import StoredFile, TrialRecord, TrialSpec
from e2gan_cluster.search.training import AdapterTraining
from e2gan_cluster.search.worker import ConceptData, WarmWorker

Grid = dict[Rung, TrialRecord]
POINTS = (0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Cost:
    """What a policy gave on one concept."""

    trainings: float
    excess: float
    kilobytes: float
    trials: int


def measure_grid(world: AdaptWorld, warm: WarmWorker, concept: Concept) -> Grid:
    """All rungs of a concept, trained to their end and measured at `POINTS`; kept in the store."""
    search = world.setting.fingerprint(concept, pairs_digest(world.store, world.config, concept))
    data = warm.concept(concept)
    grid = {}
    for multiplier, size in itertools.product(world.config.search.rank_multipliers, sorted(data.rungs)):
        spec = TrialSpec(concept.name, multiplier, size)
        key = f"bench/grid/{search}/{spec.trial_id}.json"
        try:
            grid[Rung(multiplier, size)] = TrialRecord.parse(world.store.get(key))
            continue
        except KeyError:
            record = _train(world, warm, data, spec)
        world.store.put_new(key, record.to_json())
        grid[Rung(multiplier, size)] = record
        print(f"{concept.name} x{multiplier} n{size}: {record.metric:.4f} in {record.seconds:.0f} s", flush=True)
    return grid


def _train(world: AdaptWorld, warm: WarmWorker, data: ConceptData, spec: TrialSpec) -> TrialRecord:
    started = time.monotonic()
    training = AdapterTraining(
        warm,
        data,
        size=spec.data_size,
        ranks={layer: rank * spec.multiplier for layer, rank in world.setting.start_ranks.items()},
        cfg=world.setting.train_config(spec),
        seed=world.setting.seed(spec.concept, spec),
    )
    for fraction in POINTS:
        for _ in training.until(fraction):
            pass
        training.evaluate(fraction)
    stored = tuple(StoredFile(name, len(content), "") for name, content in sorted(training.files().items()))
    return TrialRecord(
        spec, "done", training.curve[-1].metric, tuple(training.curve), training.ranks, training.state.images_seen,
        time.monotonic() - started, training.trained_parameters, stored,
    )  # fmt: skip


def replay(rules: LadderRules, grid: Grid) -> Cost:
    """Run a policy on measured curves."""
    ladder, images, trials = ConceptLadder("x", rules), 0, 0
    while not isinstance(step := ladder.next(), Done):
        assert isinstance(step, TrialSpec)
        full = grid[Rung(step.multiplier, step.data_size)]
        record = replace(full, spec=step)
        for fraction, limit in step.stop_above:
            early = full.at(fraction)
            if early is not None and early > limit:
                points = tuple(p for p in full.curve if p.fraction <= fraction + 1e-6)
                record = replace(record, state="hopeless", metric=early, curve=points, images=points[-1].images)
        images, trials = images + record.images, trials + 1
        ladder.report(record)
    pick, best = grid[step.rung], min(record.metric for record in grid.values())
    return Cost(images / pick.images, pick.metric / best - 1, pick.adapter_bytes / 1000, trials)


def main() -> None:
    """Reads the command line, measures, and prints one row per policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    world = open_world(parser.parse_args())
    warm = world.warm()
    grids = [measure_grid(world, warm, concept) for concept in world.concepts]
    base = LadderRules.of(world.config.search, available=10**9)
    print(f"\n{len(grids)} concepts, {len(grids[0])} rungs each; full grid = {len(grids[0])} trainings")
    print(f"{'policy':<44}{'trainings':>10}{'trials':>8}{'above best':>12}{'kB':>7}")
    orders, climbs = ("rank-first", "data-first", "joint"), ("up", "target")
    for order, climb, tolerance, margin in itertools.product(orders, climbs, (0.01, 0.02, 0.05), (0.0, 0.05, 0.25)):
        rules = replace(base, mode="ladder", order=order, climb=climb, tolerance=tolerance, stop_margin=margin)
        costs = [replay(replace(rules, sizes=tuple(sorted({rung.size for rung in grid}))), grid) for grid in grids]
        name = f"{order} {climb} tolerance {tolerance} margin {margin}"
        print(
            f"{name:<44}{statistics.mean(c.trainings for c in costs):>10.2f}"
            f"{statistics.mean(c.trials for c in costs):>8.1f}{100 * statistics.mean(c.excess for c in costs):>10.1f} %"
            f"{statistics.mean(c.kilobytes for c in costs):>7.0f}"
        )


if __name__ == "__main__":
    main()
