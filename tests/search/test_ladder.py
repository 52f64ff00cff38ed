"""The ladders against exhaustive search, on curves that stand for trials."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2gan_cluster.config import SearchConfig
from e2gan_cluster.search.ladder import Climb, ConceptLadder, Done, LadderRules, Order, Rung, Wait
from e2gan_cluster.search.records import Point, TrialRecord, TrialSpec

Metric = Callable[[Rung], float]


def trial(spec: TrialSpec, final: float, fraction: float = 0.25, early: float | None = None) -> TrialRecord:
    """What a trial would record whose metric at `fraction` is `early` (default: twice the final one)."""
    early = 2 * final if early is None else early
    points = [Point(fraction, 10, early)]
    if spec.until == 0.5:
        points.append(Point(0.5, 20, early))
    hopeless = any(early > limit for _, limit in spec.stop_above)
    if spec.until == 1 and not hopeless:
        points.append(Point(1.0, 40, final))
    state = "hopeless" if hopeless else "done" if spec.until == 1 else "screened"
    return TrialRecord(spec, state, points[-1].metric, tuple(points), {}, points[-1].images, 1.0, 0)


def climb(rules: LadderRules, metric: Metric) -> tuple[Rung, list[TrialSpec]]:
    ladder, tried = ConceptLadder("oil", rules), []
    while not isinstance(step := ladder.next(), Done):
        assert isinstance(step, TrialSpec), "a ladder with nothing running never waits"
        tried.append(step)
        ladder.report(trial(step, metric(Rung(step.multiplier, step.data_size))))
    return step.rung, tried


def smallest_within(cells: list[Rung], metric: Metric, tolerance: float) -> Rung:
    best = min(metric(cell) for cell in cells)
    return min(cell for cell in cells if metric(cell) <= best * (1 + tolerance))


def exhaustive(rules: LadderRules, metric: Metric) -> Rung:
    """Both axes measured completely, the second along the first's pick."""
    ranks, sizes, tolerance = rules.multipliers, rules.sizes, rules.tolerance
    if rules.order == "rank-first":
        m = smallest_within([Rung(m, sizes[-1]) for m in ranks], metric, tolerance).multiplier
        return smallest_within([Rung(m, n) for n in sizes], metric, tolerance)
    n = smallest_within([Rung(ranks[-1], n) for n in sizes], metric, tolerance).size
    return smallest_within([Rung(m, n) for m in ranks], metric, tolerance)


def falling_grid(gains: st.SearchStrategy[float]) -> st.SearchStrategy[dict[Rung, float]]:
    """Metrics that fall (or stay) with rank and with size, over 4 x 4 rungs."""

    def build(steps: list[float]) -> dict[Rung, float]:
        rank, size = [1.0], [1.0]
        for gain in steps[:3]:
            rank.append(rank[-1] * (1 - gain))
        for gain in steps[3:]:
            size.append(size[-1] * (1 - gain))
        return {Rung(1 << i, 50 << j): a * b for (i, a), (j, b) in itertools.product(enumerate(rank), enumerate(size))}

    return st.lists(gains, min_size=6, max_size=6).map(build)


RULES = LadderRules((1, 2, 4, 8), (50, 100, 200, 400), stop_margin=1e9)
ORDERS = ("rank-first", "data-first")


@pytest.mark.parametrize("order", ORDERS)
@given(grid=falling_grid(st.floats(0, 0.4)))
@settings(max_examples=150, deadline=None)
def test_target_climb_picks_as_an_exhaustive_search_on_any_falling_curve(order: Order, grid: dict[Rung, float]) -> None:
    rules = LadderRules(RULES.multipliers, RULES.sizes, order=order, climb="target", stop_margin=1e9)
    pick, tried = climb(rules, grid.__getitem__)
    assert pick == exhaustive(rules, grid.__getitem__)
    assert len(tried) == len({spec.trial_id for spec in tried}) <= 7


@pytest.mark.parametrize("order", ORDERS)
@given(
    grid=falling_grid(st.one_of(st.floats(0.05, 0.4), st.just(0.0))),
    knees=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
@settings(max_examples=150, deadline=None)
def test_upward_climb_picks_as_an_exhaustive_search_on_curves_that_flatten(
    order: Order, grid: dict[Rung, float], knees: tuple[int, int]
) -> None:
    def metric(rung: Rung) -> float:
        i, j = rung.multiplier.bit_length() - 1, (rung.size // 50).bit_length() - 1
        slope = 0.8 ** min(i, knees[0]) * 0.7 ** min(j, knees[1])
        return slope * grid[Rung(1, 50)]

    rules = LadderRules(RULES.multipliers, RULES.sizes, order=order, stop_margin=1e9)
    assert climb(rules, metric)[0] == exhaustive(rules, metric) == Rung(1 << knees[0], 50 << knees[1])


def test_grid_mode_trains_every_cell_and_picks_the_smallest_within_tolerance() -> None:
    rules = LadderRules((1, 2), (50, 100), mode="grid", tolerance=0.05)
    values = {Rung(1, 50): 0.5, Rung(1, 100): 0.31, Rung(2, 50): 0.31, Rung(2, 100): 0.3}
    pick, tried = climb(rules, values.__getitem__)
    assert (pick, len(tried)) == (Rung(1, 100), 4)
    assert all(spec.stop_above == () for spec in tried), "no cell of a grid is stopped early"


def test_fixed_mode_trains_one_rung() -> None:
    pick, tried = climb(LadderRules((1, 4), (50, 100), mode="fixed"), lambda _: 0.3)
    assert (pick, len(tried)) == (Rung(4, 100), 1)


def test_joint_order_climbs_both_ladders_in_step() -> None:
    rules = LadderRules((1, 2), (50, 100, 200), order="joint", climb="target")
    _, tried = climb(rules, lambda rung: 1 / rung.size)
    assert [(spec.multiplier, spec.data_size) for spec in tried] == [(2, 200), (1, 50), (1, 100)]


def test_hopeless_rung_is_stopped_by_the_best_rung_and_never_picked() -> None:
    rules = LadderRules((1, 2, 4), (50, 400), climb="target", stop_margin=0.1)
    ladder = ConceptLadder("oil", rules)
    first = ladder.next()
    assert isinstance(first, TrialSpec)
    assert first.stop_above == ()
    ladder.report(trial(first, 0.2, early=0.4))
    second = ladder.next()
    assert isinstance(second, TrialSpec)
    assert second.stop_above == ((0.25, pytest.approx(0.44)),)
    ladder.report(trial(second, 0.1, early=0.45))
    assert ladder.records[second.trial_id].state == "hopeless"
    third = ladder.next()
    assert isinstance(third, TrialSpec)
    assert third.multiplier == 2


def test_more_seeds_run_together_and_the_best_of_the_pick_is_kept() -> None:
    ladder = ConceptLadder("oil", LadderRules((1,), (50,), mode="fixed", seeds=2))
    a, b, third = ladder.next(), ladder.next(), ladder.next()
    assert isinstance(a, TrialSpec)
    assert isinstance(b, TrialSpec)
    assert isinstance(third, Wait)
    ladder.report(trial(a, 0.3))
    ladder.report(trial(b, 0.2))
    assert ladder.next() == Done(Rung(1, 50), "r1-n50-s1")


@pytest.mark.parametrize("order", [*ORDERS, "joint"])
@pytest.mark.parametrize("climbing", ["up", "target"])
@given(grid=falling_grid(st.floats(0, 0.4)))
@settings(max_examples=60, deadline=None)
def test_screened_search_costs_about_three_trainings_at_most_and_ends_with_the_pick_trained_whole(
    climbing: Climb, order: Order, grid: dict[Rung, float]
) -> None:
    rules = LadderRules((1, 2, 4), (50, 100, 200, 400), order=order, climb=climbing, rank_screen=0.25, data_screen=0.5)
    pick, tried = climb(rules, grid.__getitem__)
    assert [spec.until == 1 for spec in tried] == [False] * (len(tried) - 1) + [True]
    assert Rung(tried[-1].multiplier, tried[-1].data_size) == pick
    assert sum(spec.until - spec.after for spec in tried) <= (3.25 if order == "data-first" else 3)
    ends = {spec.trial_id for spec in tried}
    assert all(spec.continued_id in ends for spec in tried if spec.after), "only what was trained is continued"


@given(grid=falling_grid(st.floats(0, 0.4)))
@settings(max_examples=60, deadline=None)
def test_screening_picks_what_whole_trainings_pick_where_curves_keep_their_order(grid: dict[Rung, float]) -> None:
    rules = LadderRules(RULES.multipliers, RULES.sizes, climb="target", stop_margin=1e9)
    whole, _ = climb(rules, grid.__getitem__)
    # `trial` gives every curve twice its final metric at a quarter.
    assert climb(replace(rules, rank_screen=0.25, data_screen=0.5), grid.__getitem__)[0] == whole


def test_a_lone_rung_is_not_screened() -> None:
    pick, tried = climb(LadderRules((2,), (50,), rank_screen=0.25, data_screen=0.5), lambda _: 0.3)
    assert (pick, [spec.until for spec in tried]) == (Rung(2, 50), [1.0])


def test_a_gain_smaller_than_the_noise_between_seeds_does_not_count() -> None:
    def run(noise: float) -> Rung:
        ladder = ConceptLadder("oil", LadderRules((1, 2), (50,), seeds=2, tolerance=0.01))
        while not isinstance(step := ladder.next(), Done):
            assert isinstance(step, TrialSpec)
            ladder.report(trial(step, 0.3 / step.multiplier**0.1 + noise * step.seed_index))
        return step.rung

    assert run(noise=0.001) == Rung(2, 50), "7 % better, seeds agree"
    assert run(noise=0.1) == Rung(1, 50)


def test_lost_trial_is_handed_out_again() -> None:
    ladder = ConceptLadder("oil", RULES)
    spec = ladder.next()
    assert isinstance(spec, TrialSpec)
    assert isinstance(ladder.next(), Wait)
    ladder.abandon(spec.trial_id)
    assert ladder.next() == spec


def prefixes(rules: LadderRules, metric: Metric) -> Iterator[tuple[int, ConceptLadder]]:
    _, tried = climb(rules, metric)
    for count in range(len(tried) + 1):
        ladder = ConceptLadder("oil", rules)
        for spec in tried[:count]:
            ladder.report(trial(spec, metric(Rung(spec.multiplier, spec.data_size))))
        yield count, ladder


@pytest.mark.parametrize("screens", [(0.25, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("climbing", ["up", "target"])
@given(grid=falling_grid(st.floats(0, 0.3)))
@settings(max_examples=30, deadline=None)
def test_ladder_replayed_from_any_prefix_of_its_records_goes_on_as_before(
    climbing: Climb, screens: tuple[float, float], grid: dict[Rung, float]
) -> None:
    sizes = (50, 100, 200, 400)
    rules = LadderRules(
        (1, 2, 4, 8), sizes, climb=climbing, stop_margin=0.1, rank_screen=screens[0], data_screen=screens[1]
    )
    whole_pick, whole = climb(rules, grid.__getitem__)
    for count, ladder in prefixes(rules, grid.__getitem__):
        rest = []
        while not isinstance(step := ladder.next(), Done):
            assert isinstance(step, TrialSpec)
            rest.append(step)
            ladder.report(trial(step, grid[Rung(step.multiplier, step.data_size)]))
        assert rest == whole[count:]
        assert step.rung == whole_pick


def test_rules_cut_data_rungs_to_the_pairs_there_are() -> None:
    rules = LadderRules.of(SearchConfig(), available=120)
    assert rules.sizes == (50, 100, 120)
    assert LadderRules.of(SearchConfig(), available=120, skip=(9, 1)).multipliers == (4,)
