from typing import Any

import pytest
import torch

from e2gan_cluster.errors import StoreError
from e2gan_cluster.storage import open_store
from e2gan_cluster.train.checkpoint import delete_checkpoints, load_best, load_newest, save_checkpoint

PREFIX = "work/base/abc/"


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path)


def _save(store, images, metric=None, keep=2, note=lambda text: None):
    tensors = {"w": torch.full((100,), float(images))}
    save_checkpoint(store, PREFIX, tensors, images=images, metric=metric, keep=keep, note=note)


def _newest(store, notes=None) -> Any:
    return load_newest(store, PREFIX, (notes if notes is not None else []).append)


def test_newest_checkpoint_comes_back(store):
    assert _newest(store) is None
    _save(store, 10)
    _save(store, 20, metric=0.5)
    found = _newest(store)
    assert (found.images, found.metric, float(found.tensors["w"][0])) == (20, 0.5, 20.0)


def test_latest_few_and_the_best_are_kept(store):
    for images, metric in ((10, 0.4), (20, 0.1), (30, 0.3), (40, 0.2), (50, None)):
        _save(store, images, metric)
    kept = sorted(int(info.key.rsplit("/", 1)[1].split(".")[0]) for info in store.list(PREFIX))
    assert kept == [20, 20, 40, 40, 50, 50]
    best = load_best(store, PREFIX, lambda text: None)
    assert best is not None
    assert best.images == 20


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "metadata"])
def test_damaged_newest_checkpoint_is_passed_over_and_said_so(store, damage):
    _save(store, 10)
    _save(store, 20)
    key = f"{PREFIX}{20:012d}"
    data = store.get(f"{key}.safetensors")
    if damage == "cut":
        store.put(f"{key}.safetensors", data[: len(data) // 2])
    elif damage == "flip":
        store.put(f"{key}.safetensors", data[:-10] + bytes([data[-10] ^ 1]) + data[-9:])
    elif damage == "gone":
        store.delete(f"{key}.safetensors")
    else:
        store.put(f"{key}.json", b'{"images": 20')
    notes = []
    assert _newest(store, notes).images == 10
    assert "000000000020" in notes[0]
    assert "passed over" in notes[0]


def test_checkpoint_without_metadata_does_not_count(store):
    _save(store, 10)
    store.put(f"{PREFIX}{20:012d}.safetensors", b"half written by a killed run")
    notes = []
    assert _newest(store, notes).images == 10
    assert not notes


def test_training_goes_on_when_old_checkpoints_cannot_be_removed(store, monkeypatch):
    def refuse(key):
        raise StoreError(f"cannot delete {key}: access denied")

    _save(store, 10)
    monkeypatch.setattr(store, "delete", refuse)
    notes = []
    _save(store, 20, keep=1, note=notes.append)
    assert _newest(store).images == 20
    assert "access denied" in notes[0]
    delete_checkpoints(store, PREFIX, notes.append)
    assert len(notes) == 2
