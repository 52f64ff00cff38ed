"""Grouping, seeds and fingerprints."""

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.pairs.gate import Gate
from e2gan_cluster.pairs.plan import Item, content_fingerprint, group_items, pairs_fingerprint, plan_items, row_seed

CONCEPT = Concept("oil", "make it an oil painting")


def items(numbers: set[int], crops: int = 1) -> list[Item]:
    ids = sorted(hashlib.sha256(str(n).encode()).hexdigest()[:16] for n in numbers)
    return [Item(i, crop, i) for i in ids for crop in range(crops)]


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=300), st.integers(1, 20), st.integers(1, 3))
def test_groups_hold_every_row_once_in_order(numbers: set[int], rows: int, crops: int) -> None:
    everything = items(numbers, crops)
    groups = list(group_items(everything, rows))
    assert [item for group in groups for item in group] == everything
    assert all(0 < len(group) <= rows for group in groups)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 10**6), min_size=2, max_size=300), st.integers(2, 20))
def test_one_more_photo_changes_one_group(numbers: set[int], rows: int) -> None:
    new = {max(numbers)}
    before = {tuple(group) for group in group_items(items(numbers - new), rows)}
    after = {tuple(group) for group in group_items(items(numbers), rows)}
    assert len(before - after) <= 1


def test_limits_take_first_crops_of_all_photos_before_second_crops() -> None:
    origins = {item.source_id: item.origin for item in items(set(range(200)))}
    config = RunConfig.model_validate(
        {"photos": {"crops_per_photo": 3}, "pairs": {"pairs_per_concept": 400}, "search": {"data_sizes": [50]}}
    )
    plan = plan_items(origins, config)
    assert len(plan["train"]) == 400
    assert sum(item.crop == 0 for item in plan["train"]) == len({item.source_id for item in plan["train"]})
    assert {item.crop for item in plan["heldout"]} == {0}
    assert not {i.source_id for i in plan["train"]} & {i.source_id for i in plan["heldout"]}


def test_fingerprints_follow_what_decides_the_pairs_and_nothing_else() -> None:
    base = RunConfig()
    other_place = RunConfig.model_validate(
        {"storage": "elsewhere", "pairs": {"max_workers": 7}, "ray": {"num_cpus": 1}}
    )
    assert content_fingerprint(base, CONCEPT) == content_fingerprint(other_place, CONCEPT)
    assert pairs_fingerprint(base, CONCEPT) == pairs_fingerprint(other_place, CONCEPT)
    changes = [
        {"seed": 1},
        {"teacher": {"steps": 3}},
        {"pairs": {"resolution": 64}},
        {"pairs": {"filters": {"min_change": 0.1}}},
    ]
    for change in changes:
        assert content_fingerprint(RunConfig.model_validate(change), CONCEPT) != content_fingerprint(base, CONCEPT)
    tuned = Concept("oil", "make it an oil painting", teacher={"steps": 3})
    assert content_fingerprint(base, tuned) != content_fingerprint(base, CONCEPT)
    more = RunConfig.model_validate({"photos": {"limit": 3}})
    assert content_fingerprint(more, CONCEPT) == content_fingerprint(base, CONCEPT)
    assert pairs_fingerprint(more, CONCEPT) != pairs_fingerprint(base, CONCEPT)


def test_seeds_differ_between_rows_and_concepts() -> None:
    seeds = {row_seed(s, i, c, n) for s in (0, 1) for i in ("a", "b") for c in (0, 1) for n in ("x", "y")}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_gate_gives_up_after_two_deaths_and_names_them() -> None:
    gate = Gate(timeout_s=100)
    assert gate.begin("oil", "train-1")[0] == "go"
    assert gate.begin("oil", "train-1")[0] == "go"
    decision, reason = gate.begin("oil", "train-1")
    assert decision == "give-up"
    assert "died" in reason
    assert [incident.shard for incident in gate.incidents()] == ["train-1", "train-1"]
    assert gate.begin("oil", "train-2")[0] == "go"
    gate.stop("oil")
    assert gate.begin("oil", "train-3")[0] == "stopped"
