"""Records survive the store, and damaged ones are named."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2gan_cluster.errors import IntegrityError
from e2gan_cluster.search.records import ConceptResult, Point, StoredFile, TrialRecord, TrialSpec

NUMBER = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.integers(0, 10**9)
SPEC = st.builds(
    TrialSpec,
    concept=st.just("oil"),
    multiplier=COUNT,
    data_size=COUNT,
    stop_above=st.lists(st.tuples(NUMBER, NUMBER), max_size=2).map(tuple),
    init=st.none() | st.text(max_size=5),
    until=st.floats(0.01, 1),
)
FILES = st.lists(st.builds(StoredFile, name=st.text(max_size=9), size=COUNT, sha256=st.text(max_size=4)), max_size=2)
RECORD = st.builds(
    TrialRecord,
    spec=SPEC,
    state=st.sampled_from(["done", "screened", "hopeless"]),
    metric=NUMBER,
    curve=st.lists(
        st.builds(Point, NUMBER, COUNT, NUMBER, st.dictionaries(st.text(max_size=3), NUMBER)), max_size=3
    ).map(tuple),
    ranks=st.dictionaries(st.text(max_size=4), COUNT, max_size=3),
    images=COUNT,
    seconds=NUMBER,
    trained_parameters=COUNT,
    files=FILES.map(tuple),
    resume=st.none() | st.builds(StoredFile, name=st.text(max_size=9), size=COUNT, sha256=st.text(max_size=4)),
)


@given(RECORD)
def test_trial_record_reads_back_as_it_was_written(record: TrialRecord) -> None:
    assert TrialRecord.parse(record.to_json()) == record


def test_result_reads_back_as_it_was_written() -> None:
    result = ConceptResult(
        "oil", "done", metrics={"lpips": 0.2}, table=({"trial": "a"},), files=(StoredFile("a", 1, "f"),)
    )
    assert ConceptResult.parse(result.to_json()) == result


def test_record_with_a_non_finite_metric_is_never_written() -> None:
    record = ConceptResult("oil", "done", metric=float("nan"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.to_json()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"concept": "oil"}', b'{"odd": 1}'])
def test_damaged_record_is_refused_with_its_kind(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="TrialRecord"):
        TrialRecord.parse(data)


def test_trial_id_tells_every_field_that_makes_a_rung() -> None:
    spec = TrialSpec("oil", 2, 100, 1)
    assert spec.trial_id == "r2-n100-s1"
    assert dataclasses.replace(spec, final=True).trial_id == "final"
    screened = dataclasses.replace(spec, until=0.125)
    assert screened.trial_id == "r2-n100-s1-p125"
    assert dataclasses.replace(spec, after=0.125).continued_id == screened.trial_id
    assert screened.training_id == spec.training_id, "the beginning of the same training"
