"""Publishing, channels, comparison, garbage; killed publishes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from e2gan_cluster.errors import BaseMismatchError, InputError, IntegrityError
from e2gan_cluster.storage import open_store
from e2gan_cluster.storage.bundle import publish_bundle, read_bundle
from e2gan_cluster.storage.by_hand import publish_folder
from e2gan_cluster.storage.channels import read_channel
from e2gan_cluster.storage.gc import collect
from e2gan_cluster.storage.registry import (
    diff,
    list_adapters,
    promote,
    publish_adapter,
    read_manifest,
    resolve,
    rollback,
)
from tests.storage.registry_parts import BASE_ID, LAYERS, adapter_files, adapter_tensors, facts, flip, publish

KILL_AT = Path(__file__).with_name("kill_at.py")


def test_publishing_the_same_bytes_again_changes_nothing(store):
    version = publish(store)
    before = {info.key: store.get(info.key) for info in store.list()}
    assert publish(store) == version
    assert {info.key: store.get(info.key) for info in store.list()} == before
    assert resolve(store, "oil") == resolve(store, "oil", version) == version
    manifest = read_manifest(store, "oil", version)
    assert manifest.meta["ranks"] == dict.fromkeys(LAYERS, 2)
    assert manifest.meta["concept"] == "oil"


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati"])
def test_a_version_depends_on_no_clock_and_no_time_zone(tmp_path, monkeypatch, zone):
    store = open_store(tmp_path)
    version = publish(store)
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    monkeypatch.setattr("e2gan_cluster.storage.channels.now", lambda: "1999-01-01T00:00:00+00:00")
    try:
        assert publish(store) == version
        assert publish(open_store(tmp_path / "elsewhere")) == version
    finally:
        monkeypatch.undo()
        time.tzset()
    [info] = list_adapters(store)
    assert info.versions == (version,)


def test_channels_move_promote_and_roll_back(store):
    first = publish(store, seed=1)
    second = publish(store, seed=2, channel="canary")
    assert (resolve(store, "oil"), resolve(store, "oil", "canary")) == (first, second)
    assert promote(store, "oil", "canary", "latest") == second
    assert rollback(store, "oil", "latest") == first
    with pytest.raises(InputError, match="no earlier version"):
        rollback(store, "oil", "latest")
    [info] = list_adapters(store)
    assert info.channels == {"canary": second, "latest": first}
    assert set(info.versions) == {first, second}


def test_differences_name_facts_and_files(tmp_path):
    store = open_store(tmp_path)
    first = publish_adapter(store, "oil", adapter_files(1), facts(metrics={"lpips": 0.2}, data_size=100))
    second = publish_adapter(store, "oil", adapter_files(2, rank=4), facts(metrics={"lpips": 0.1}))
    changes = {change.field: (change.before, change.after) for change in diff(store, "oil", first, second)}
    assert changes["metrics.lpips"] == (0.2, 0.1)
    assert changes["data_size"] == (100, None)
    assert changes["ranks.downsample.conv"] == (2, 4)
    assert "file adapter_model.safetensors" in changes
    assert diff(store, "oil", first, first) == []


def test_unknown_names_propose_the_nearest(tmp_path):
    store = open_store(tmp_path)
    publish(store, "oil-painting")
    with pytest.raises(InputError, match="did you mean `oil-painting`"):
        resolve(store, "oil-paintin")
    with pytest.raises(InputError, match="did you mean `latest`"):
        resolve(store, "oil-painting", "latst")
    for name in ("../x", "a/b", "Oil", "x" * 64, "oil\n"):
        with pytest.raises(InputError):
            resolve(store, name)
        with pytest.raises(InputError):
            publish(store, name)


def test_unusable_adapters_are_not_published(tmp_path):
    store = open_store(tmp_path)
    nan = adapter_tensors()
    nan["base_model.model.downsample.conv.lora_A.weight"][0] = np.nan
    with pytest.raises(IntegrityError, match="NaN"):
        publish_adapter(store, "oil", adapter_files(tensors=nan), facts())
    with pytest.raises(BaseMismatchError, match=f"ffffffffffff.*{BASE_ID}"):
        publish_adapter(store, "oil", adapter_files(base_id="ffffffffffff"), facts())
    with pytest.raises(InputError, match="pickle"):
        publish_adapter(store, "oil", {**adapter_files(), "adapter_model.bin": b"x"}, facts())
    with pytest.raises(InputError, match="teacher_fingerprint"):
        publish_adapter(store, "oil", adapter_files(), {"base_id": BASE_ID})
    assert list(store.list()) == []


def publish_base(store, shapes=None):
    """A base whose layers fit the adapters."""
    fitting = {f"{layer}.weight": np.zeros((outputs, *inputs), "f4") for layer, (inputs, outputs) in LAYERS.items()}
    publish_bundle(store, f"base/{BASE_ID}/", {"generator.safetensors": save(shapes or fitting)}, {})


def test_a_folder_is_published_by_hand_against_its_base(tmp_path):
    store, folder = open_store(tmp_path / "store"), tmp_path / "peft"
    folder.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / name).write_bytes(adapter_files()[name])
    with pytest.raises(InputError, match="does not hold"):
        publish_folder(store, "oil", folder, {})
    publish_base(store)
    version = publish_folder(store, "oil", folder, {"prompt": "an oil painting", "licence": "CC0-1.0"})
    card = read_bundle(store, f"adapters/oil/{version}/", ["README.md"]).files["README.md"].decode()
    assert "an oil painting" in card
    assert "`downsample.conv` | 2" in card
    (folder / "link.json").symlink_to(folder / "adapter_config.json")
    with pytest.raises(IntegrityError, match="symbolic link"):
        publish_folder(store, "oil", folder, {})


def test_a_folder_that_does_not_fit_its_base_is_refused(tmp_path):
    store, folder = open_store(tmp_path / "store"), tmp_path / "peft"
    folder.mkdir()
    for name, data in adapter_files().items():
        (folder / name).write_bytes(data)
    publish_base(store, {"downsample.conv.weight": np.zeros((16, 8, 3, 3), "f4")})
    with pytest.raises(BaseMismatchError, match=r"no layer 'transformer\.attention\.q'"):
        publish_folder(store, "oil", folder, {})


def test_damage_in_the_registry_is_reported_and_hides_no_other_adapter(tmp_path):
    store = open_store(tmp_path)
    version = publish(store, "bad")
    publish(store, "good")
    path = tmp_path / "adapters" / "bad" / version / "manifest.json"
    path.write_bytes(flip(path.read_bytes(), 30))
    problems = {info.concept: bool(info.problem) for info in list_adapters(store)}
    assert problems == {"bad": True, "good": False}
    with pytest.raises(IntegrityError):
        promote(store, "bad", "latest", "prod")


def test_a_manifest_moved_to_another_concept_is_refused(tmp_path):
    store = open_store(tmp_path)
    version = publish(store, "oil")
    (tmp_path / "adapters" / "ink").mkdir()
    (tmp_path / "adapters" / "oil" / version).rename(tmp_path / "adapters" / "ink" / version)
    with pytest.raises(IntegrityError, match="is the manifest of oil"):
        read_manifest(store, "ink", version)


def test_a_version_never_changes_its_bytes(tmp_path):
    store = open_store(tmp_path)
    version = publish(store)
    (tmp_path / "adapters" / "oil" / version / "manifest.json").unlink()
    (tmp_path / "adapters" / "oil" / version / "merged.onnx").write_bytes(b"other")
    with pytest.raises(IntegrityError, match=r"merged\.onnx holds other bytes"):
        publish(store)


def test_killed_publish_leaves_readers_on_the_old_version_at_every_step(tmp_path):
    old = publish(open_store(tmp_path / "before"), seed=1)
    killed = 0
    for step in range(1, 60, 3):
        root = tmp_path / str(step)
        shutil.copytree(tmp_path / "before", root)
        command = [sys.executable, str(KILL_AT), "publish", str(step), str(root), "-"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        killed += 1
        store = open_store(root)
        assert resolve(store, "oil") == old
        [info] = list_adapters(store)
        for version in info.versions:  # whole, whether anybody points to it or not
            read_bundle(store, f"adapters/oil/{version}/")
        new = publish(store, seed=2)
        assert resolve(store, "oil") == new
        channel = read_channel(store, "oil", "latest")
        assert channel is not None
        assert [past.version for past in channel.history] == [old]
    assert killed >= 5


def _environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def test_garbage_is_listed_and_removed_and_nothing_else(tmp_path):
    store = open_store(tmp_path)
    old, new = publish(store, seed=1), publish(store, seed=2)
    forgotten = publish(store, seed=3, channel="canary")
    store.delete("adapters/oil/canary.json")
    store.put_new("adapters/oil/0123456789ab/adapter_model.safetensors", b"orphan")
    (tmp_path / "adapters" / ".tmp-1-dead").write_bytes(b"x")
    assert collect(store, remove=False) == []
    found = {item.key for item in collect(store, remove=False, older_than_s=0)}
    assert found == {"adapters/oil/0123456789ab/adapter_model.safetensors", "adapters/.tmp-1-dead"}
    collect(store, remove=True, older_than_s=0, unreferenced=True)
    [info] = list_adapters(store)
    assert set(info.versions) == {old, new}
    assert forgotten not in info.versions
    assert collect(store, remove=False, older_than_s=0, unreferenced=True) == []
    read_bundle(store, f"adapters/oil/{old}/")
