"""Pairs through Ray Data and without it."""

from pathlib import Path

import numpy as np
import pytest

from e2gan_cluster.concepts import Concept
from e2gan_cluster.errors import InputError
from e2gan_cluster.pairs.generate import generate_pairs, pairs_pending, run_local
from e2gan_cluster.pairs.shards import load_pairs
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.storage import open_store
from e2gan_cluster.storage.base import ObjectStore
from tests.conftest import S3Server
from tests.pairs.pairs_setup import INVERT, OTHER, config_for, write_photos

QUIET = SilentReporter()


def shard_files(store: ObjectStore, concept: str) -> dict[str, bytes]:
    found = [info.key for info in store.list(f"pairs/{concept}/")]
    return {key: store.get(key) for key in found if key.endswith((".parquet", ".done.json"))}


def test_one_worker_two_workers_and_no_ray_write_the_same_bytes(tmp_path: Path, ray_cluster: None) -> None:
    photos = write_photos(tmp_path / "photos", 30)
    stores = {}
    for name, workers in (("local", 0), ("one", 1), ("two", 2)):
        config = config_for(photos, tmp_path / name, max_workers=max(workers, 1), min_workers=max(workers, 1))
        config = config.model_copy(update={"pairs": config.pairs.model_copy(update={"worker_cpus": 0.5})})
        store = open_store(config.storage)
        run = generate_pairs if workers else run_local
        results = run(config, store, [INVERT, OTHER], QUIET)
        assert {r.failure for r in results.values()} == {None}
        stores[name] = {concept: shard_files(store, concept) for concept in ("invert", "other")}
    assert len(stores["local"]["invert"]) >= 8
    assert stores["local"] == stores["one"] == stores["two"]


def test_finished_work_is_not_made_again(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 20)
    config = config_for(photos, tmp_path / "store")
    store = open_store(config.storage)
    assert pairs_pending(config, store, [INVERT])
    first = run_local(config, store, [INVERT], QUIET)["invert"]
    assert not pairs_pending(config, store, [INVERT])
    # A teacher that must not be called.
    again = run_local(config, store, [INVERT], QUIET, teacher=object())["invert"]  # pyright: ignore[reportArgumentType]
    assert (again.train_ok, again.heldout_ok) == (first.train_ok, first.heldout_ok)
    assert first.train_ok + first.heldout_ok == 20
    assert pairs_pending(config, store, [INVERT, OTHER])


def test_added_photos_leave_other_shards_as_they_are(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 60)
    config = config_for(photos, tmp_path / "store")
    store = open_store(config.storage)
    run_local(config, store, [INVERT], QUIET)
    before = shard_files(store, "invert")
    write_photos(photos, 1, first=60)
    result = run_local(config, store, [INVERT], QUIET)["invert"]
    after = shard_files(store, "invert")
    assert result.train_ok + result.heldout_ok == 61
    assert set(before) <= set(after)
    # One group changed, and may have been split in two: each a Parquet file and a marker.
    assert len(after) - len(before) in (2, 4)
    pairs = load_pairs(store, INVERT, "train", config)
    assert len(pairs.source_ids) == len(set(pairs.source_ids)) == result.train_ok


def test_loaded_pairs_are_the_photos_and_their_edits(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 12)
    config = config_for(photos, tmp_path / "store", crops_per_photo=3)
    store = open_store(config.storage)
    result = run_local(config, store, [INVERT], QUIET)["invert"]
    pairs = load_pairs(store, INVERT, "train", config)
    assert len(pairs) == result.train_ok == 3 * len(set(pairs.source_ids))
    assert pairs.inputs_NHWC.shape == pairs.edits_NHWC.shape == (len(pairs), 32, 32, 3)
    difference = pairs.edits_NHWC.astype(int) - (255 - pairs.inputs_NHWC.astype(int) // 2)
    assert np.ptp(difference.reshape(len(pairs), -1), axis=1).max() == 0
    heldout = load_pairs(store, INVERT, "heldout", config)
    assert not set(heldout.source_ids) & set(pairs.source_ids)


def test_pairs_of_another_setting_are_not_loaded(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 12)
    config = config_for(photos, tmp_path / "store")
    store = open_store(config.storage)
    run_local(config, store, [INVERT], QUIET)
    other = config.model_copy(update={"seed": 1})
    with pytest.raises(InputError, match="no finished pairs"):
        load_pairs(store, INVERT, "train", other)
    reworded = Concept("invert", "invert all colours")
    with pytest.raises(InputError, match="no finished pairs"):
        load_pairs(store, reworded, "train", config)


def test_every_concept_gets_a_grid_and_a_status(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 12)
    config = config_for(photos, tmp_path / "store")
    store = open_store(config.storage)
    run_local(config, store, [INVERT], QUIET)
    assert store.get("pairs/invert/grid-train.png").startswith(b"\x89PNG")
    assert store.get("pairs/invert/grid-heldout.png").startswith(b"\x89PNG")
    assert b'"state": "done"' in store.get("pairs/invert/status.json")


def test_pairs_go_to_s3_and_come_back(tmp_path: Path, s3_env: S3Server) -> None:
    config = config_for(write_photos(tmp_path / "photos", 12), f"s3://{s3_env.bucket}/pairs-test")
    store = open_store(config.storage)
    result = run_local(config, store, [INVERT], QUIET)["invert"]
    assert result.failure is None
    assert not pairs_pending(config, store, [INVERT])
    assert len(load_pairs(store, INVERT, "train", config)) == result.train_ok
    clean = open_store(tmp_path / "clean")
    run_local(config, clean, [INVERT], QUIET)
    assert shard_files(store, "invert") == shard_files(clean, "invert")


def test_a_source_full_of_bad_photos_stops_before_any_edit(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    for n in range(6):
        (photos / f"bad-{n}.jpg").write_bytes(b"not a photo %d" % n)
    config = config_for(photos, tmp_path / "store")
    with pytest.raises(InputError, match="6 of 10 photos"):
        run_local(config, open_store(config.storage), [INVERT], QUIET)


def test_a_few_bad_photos_become_rows_with_a_reason(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 11)
    (photos / "bad.jpg").write_bytes(b"not a photo")
    config = config_for(photos, tmp_path / "store")
    result = run_local(config, open_store(config.storage), [INVERT], QUIET)["invert"]
    assert result.failure is None
    assert result.dropped == {"photo-not-an-image": 1}
    assert result.train_ok + result.heldout_ok == 11
