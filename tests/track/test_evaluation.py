"""`e2gan evaluate` on a real base, a real adapter and a teacher with seed noise."""

import json
from pathlib import Path

import pytest

from e2gan_cluster.batch import Batch
from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import TeacherConfig
from e2gan_cluster.errors import InputError
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.search.adapt import adapt_concepts
from e2gan_cluster.search.jobs import serve_here
from e2gan_cluster.storage import keys, open_store
from e2gan_cluster.track.evaluation import ADAPTER, BASE, PHOTO, EvaluateOptions, evaluate_batch, evaluation_table
from e2gan_cluster.track.mlflow_tracker import NullTracker
from tests import fake_editor, search_world

FINGERPRINT = "c" * 64
OPTIONS = EvaluateOptions(metrics=("l1", "psnr"))


@pytest.fixture(scope="module")
def batch(tmp_path_factory) -> Batch:
    folder = tmp_path_factory.mktemp("evaluation")
    teacher = TeacherConfig(backend="custom", model="tests.fake_editor:make", batch_size=4)
    config = search_world.make_config(folder).model_copy(update={"teacher": teacher})
    store = open_store(config.storage)
    concepts = [Concept("invert", search_world.EDITS["invert"][0]), Concept("warm", search_world.EDITS["warm"][0])]
    for concept in concepts:
        search_world.add_pairs(store, config, concept)
    return Batch(config, store, FINGERPRINT, [], concepts)


@pytest.fixture(scope="module")
def base_id(batch) -> str:
    base_id = search_world.add_base(batch.store, batch.config)
    adapt_concepts(batch.config, batch.store, base_id, batch.new[:1], SilentReporter(), NullTracker(), serve_here)
    return base_id


def measure(batch: Batch, base_id: str | None, options: EvaluateOptions, concepts: list[Concept] | None = None):
    return evaluate_batch(batch, base_id, concepts or batch.new[:1], options, SilentReporter())


def test_adapter_base_photo_and_floor_stand_side_by_side(batch, base_id):
    records, failed = measure(batch, base_id, OPTIONS)
    rows = records["invert"]["rows"]
    assert not failed
    assert list(rows) == [PHOTO, BASE, ADAPTER]
    assert rows[ADAPTER]["l1"] < rows[BASE]["l1"]
    assert set(records["invert"]["floor"]) == {"l1", "psnr"}
    stored = json.loads(batch.store.get(keys.evaluation("invert", FINGERPRINT[:16])))
    assert stored["rows"] == rows
    table = evaluation_table(records, str)
    assert table[0] == ["concept", "what", "l1", "psnr"]
    assert table[-1][1].startswith("floor")


def test_floor_is_measured_once(batch, base_id, monkeypatch):
    before, _ = measure(batch, base_id, OPTIONS)
    monkeypatch.setattr(fake_editor, "make", lambda cfg: pytest.fail("the teacher ran again"))
    again, _ = measure(batch, base_id, EvaluateOptions(metrics=("l1",)))
    assert again["invert"]["floor"] == {"l1": before["invert"]["floor"]["l1"]}


def test_a_concept_without_an_adapter_and_a_batch_without_a_base_are_measured_as_far_as_they_go(batch, base_id):
    options = EvaluateOptions(metrics=("l1",), floor=False)
    records, _ = measure(batch, base_id, options, batch.new[1:])
    assert list(records["warm"]["rows"]) == [PHOTO, BASE]
    records, _ = measure(batch, None, options)
    assert list(records["invert"]["rows"]) == [PHOTO]
    assert records["invert"]["floor"] == {}


def test_saved_pictures_of_another_model_are_measured_in_the_same_table(batch, base_id, tmp_path):
    first, _ = measure(batch, base_id, EvaluateOptions(metrics=("l1",), floor=False, save=tmp_path))
    assert sorted(p.name for p in (tmp_path / "invert").iterdir()) == ["adapter", "base", "photo", "teacher"]
    others = {"mine": tmp_path / "invert" / "adapter", "perfect": tmp_path / "invert" / "teacher"}
    records, _ = measure(batch, base_id, EvaluateOptions(metrics=("l1",), floor=False, outputs=others))
    rows = records["invert"]["rows"]
    assert rows["mine"] == rows[ADAPTER] == first["invert"]["rows"][ADAPTER]
    assert rows["perfect"]["l1"] == 0


def test_missing_outputs_and_missing_pairs_fail_their_concept_only(batch, base_id, tmp_path):
    records, failed = measure(batch, base_id, EvaluateOptions(metrics=("l1",), floor=False, outputs={"none": tmp_path}))
    assert not records
    assert "none" not in failed
    assert ".png" in failed["invert"]
    concepts = [Concept("unmade", "nothing"), batch.new[0]]
    records, failed = measure(batch, base_id, EvaluateOptions(metrics=("l1",), floor=False), concepts)
    assert (list(records), list(failed)) == (["invert"], ["unmade"])


def test_hostile_source_ids_write_nowhere(batch, tmp_path: Path):
    from e2gan_cluster.pairs.shards import load_pairs
    from e2gan_cluster.track import evaluation

    heldout = load_pairs(batch.store, batch.new[0], "heldout", batch.config)
    heldout.source_ids[0] = "../../escaped"
    with pytest.raises(InputError, match="source"):
        evaluation._save(tmp_path / "a" / "b", heldout, {PHOTO: heldout.inputs_NHWC})
    assert not list(tmp_path.rglob("escaped*"))
