"""Which order, climb, tolerance and early stop: least training for the same quality, on measured learning curves.

First every rung of every concept is trained once (grid; resumable, kept in the folder); then every policy is replayed
on these curves. Printed per policy: training in final trainings, quality against the best rung, adapter size.

python -m benchmarks.search_policy --concepts 8 --photos FOLDER
python -m benchmarks.search_policy --quick
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.adapt_world import AdaptWorld, add_options, open_world
from e2gan_cluster.concepts import Concept
from e2gan_cluster.config_io import fingerprint
from e2gan_cluster.search.ladder import Climb, ConceptLadder, Done, LadderRules, Order, Rung
from e2gan_cluster.search.records import Point, StoredFile, TrialRecord, TrialSpec
from e2gan_cluster.search.training import AdapterTraining
from e2gan_cluster.search.worker import ConceptData, WarmWorker

Grid = dict[Rung, TrialRecord]
POINTS = (0.125, 0.25, 0.5, 1.0)
TOLERANCES = (0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Cost:
    """What a policy gave on one concept.

    Attributes:
        trainings: Images of all trials over those of the final training.
        excess: Metric of the pick above the best rung's, relative.
        lost: The same as a share of what the best rung gains on the base.
        kilobytes: Of the picked adapter.
        pairs: Of the picked data rung.
        trials: Trials trained.
    """

    trainings: float
    excess: float
    lost: float
    kilobytes: float
    pairs: int
    trials: int


def measure_grid(world: AdaptWorld, warm: WarmWorker, concept: Concept) -> Grid:
    """All rungs of a concept, trained to their end and measured at `POINTS`; kept in the store."""
    search, data = world.config.search, warm.concept(concept)
    # What decides a curve; not the policies that are compared.
    decides = [world.setting.base_id, search.train.model_dump(), search.metric, search.subset, search.trial_images]
    folder = fingerprint({"decides": [*decides, dict(world.setting.start_ranks), world.config.seed]})[:16]
    grid = {}
    for multiplier, size in itertools.product(search.rank_multipliers, sorted(data.rungs)):
        spec = TrialSpec(concept.name, multiplier, size)
        key = f"bench/grid/{folder}/{concept.name}/{spec.trial_id}.json"
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


def replay(rules: LadderRules, grid: Grid, base: float) -> Cost:
    """Run a policy on measured curves; ``base`` is the metric without an adapter."""
    ladder, images, trials = ConceptLadder("x", rules), 0, 0
    while not isinstance(step := ladder.next(), Done):
        assert isinstance(step, TrialSpec)
        record = _cut(grid[Rung(step.multiplier, step.data_size)], step)
        images, trials = images + record.images, trials + 1
        ladder.report(record)
    pick, best = grid[step.rung], min(record.metric for record in grid.values())
    return Cost(
        images / pick.images, pick.metric / best - 1, (pick.metric - best) / (base - best),
        pick.adapter_bytes / 1000, step.rung.size, trials,
    )  # fmt: skip


def _cut(whole: TrialRecord, spec: TrialSpec) -> TrialRecord:
    """What of a whole training a trial would have seen."""
    state, points = ("done" if spec.until == 1 else "screened"), list[Point]()
    for point in whole.curve:
        if point.fraction > spec.until:
            break
        points.append(point)
        if any(at == point.fraction and point.metric > limit for at, limit in spec.stop_above):
            state = "hopeless"
            break
    before = max((point.images for point in points if point.fraction <= spec.after), default=0)
    return replace(
        whole, spec=spec, state=state, metric=points[-1].metric, curve=tuple(points), images=points[-1].images - before
    )


def policies(base: LadderRules) -> Iterator[tuple[str, LadderRules]]:
    """Everything that is compared, with its name."""
    orders: tuple[Order, ...] = ("rank-first", "data-first", "joint")
    climbs: tuple[Climb, ...] = ("up", "target")
    for order, climb, tolerance in itertools.product(orders, climbs, TOLERANCES):
        rules = replace(base, mode="ladder", order=order, climb=climb, tolerance=tolerance)
        for rank_screen, data_screen in ((0.125, 0.125), (0.25, 0.25), (0.125, 0.5), (0.25, 0.5), (0.5, 0.5)):
            name = f"{order} {climb} {tolerance} screens {rank_screen} {data_screen}"
            yield name, replace(rules, rank_screen=rank_screen, data_screen=data_screen)
        for margin in (0.05, 0.25, 1e9):
            stop = "never" if margin == 1e9 else f"{margin}"
            yield f"{order} {climb} {tolerance} stop {stop}", replace(rules, stop_margin=margin)
    yield "largest rung", replace(base, mode="fixed")
    yield "grid", replace(base, mode="grid", tolerance=0.0)


def main() -> None:
    """Reads the command line, measures, and prints one row per policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    world = open_world(parser.parse_args())
    warm = world.warm()
    grids = [measure_grid(world, warm, concept) for concept in world.concepts]
    bases = [warm.measure(warm.base.generator, warm.concept(concept)) for concept in world.concepts]
    base = replace(LadderRules.of(world.config.search, available=10**9), rank_screen=1.0, data_screen=1.0)
    print(f"\n{len(grids)} concepts, {len(grids[0])} rungs each; costs in final trainings")
    print(f"{'policy':<44}{'cost':>7}{'worst':>7}{'trials':>8}{'above best':>12}{'gain lost':>11}{'kB':>6}{'pairs':>7}")
    for name, rules in policies(base):
        costs = [
            replay(replace(rules, sizes=tuple(sorted({rung.size for rung in grid}))), grid, without)
            for grid, without in zip(grids, bases, strict=True)
        ]

        def mean(field: str, costs: list[Cost] = costs) -> float:
            return statistics.mean(getattr(cost, field) for cost in costs)

        print(
            f"{name:<44}{mean('trainings'):>7.2f}{max(c.trainings for c in costs):>7.2f}{mean('trials'):>8.1f}"
            f"{100 * mean('excess'):>10.1f} %{100 * mean('lost'):>9.2f} %{mean('kilobytes'):>6.0f}{mean('pairs'):>7.0f}"
        )


if __name__ == "__main__":
    main()
