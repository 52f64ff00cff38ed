"""Pulls: only what changed, verified, all or nothing, whatever happens."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from e2gan_cluster.errors import BaseMismatchError, InputError, IntegrityError, StoreError, UserError
from e2gan_cluster.storage import canonical, open_store
from e2gan_cluster.storage.channels import Channel, Target
from e2gan_cluster.storage.checks import sha256_of
from e2gan_cluster.storage.folder import STAGING, verify_folder
from e2gan_cluster.storage.links import write_links
from e2gan_cluster.storage.local import LocalStore
from e2gan_cluster.storage.lock import LOCK, read_lock
from e2gan_cluster.storage.manifest import FileEntry, Manifest, version_id
from e2gan_cluster.storage.pull import pull
from e2gan_cluster.storage.pull_plan import BASE_ITEM, PullRequest
from tests.storage.registry_parts import (
    BASE_ID,
    adapter_files,
    adapter_tensors,
    facts,
    flip,
    publish,
    publish_mobile_base,
)

ROOT = Path(__file__).parents[2]
KILL_AT = Path(__file__).with_name("kill_at.py")
CONCEPTS = ("ink", "oil", "snow")


@pytest.fixture
def registry(tmp_path):
    """A registry folder with three adapters and their base."""
    store = open_store(tmp_path / "registry")
    fill(store)
    return store


def fill(store):
    """Publish three adapters and their base."""
    for seed, concept in enumerate(CONCEPTS):
        publish(store, concept, seed=seed)
    publish_mobile_base(store)


@pytest.fixture
def target(tmp_path):
    """Where pulls go."""
    return tmp_path / "app" / "effects"


def snapshot(folder):
    """All bytes below a folder, staging left out."""
    paths = [path for path in folder.rglob("*") if path.is_file() and STAGING not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_pull_brings_what_the_format_needs_and_writes_the_lock(registry, target):
    result = pull(registry, PullRequest(target, ("oil", "ink")))
    assert set(result.changed) == {"oil", "ink", BASE_ITEM}
    assert sorted(snapshot(target)) == [
        "adapters/ink/adapter.onnx_adapter", "adapters/ink/manifest.json",
        "adapters/oil/adapter.onnx_adapter", "adapters/oil/manifest.json",
        "base/base.onnx", "base/manifest.json", LOCK,
    ]  # fmt: skip
    assert result.lock == read_lock(target / LOCK)
    assert result.lock.base_id == BASE_ID
    assert set(verify_folder(target).adapters) == {"ink", "oil"}


def test_a_second_pull_downloads_and_writes_nothing(registry, target, monkeypatch):
    pull(registry, PullRequest(target))
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    monkeypatch.setattr(LocalStore, "get_file", None)
    result = pull(registry, PullRequest(target))
    assert (result.changed, result.files) == ((), 0)
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before


def test_only_files_that_changed_are_downloaded(registry, target):
    pull(registry, PullRequest(target, formats=("peft",)))
    publish(registry, "oil", seed=9)
    result = pull(registry, PullRequest(target, formats=("peft",)))
    assert result.changed == ("oil",)
    assert result.files == 1  # the weights; config, prompt and card are the same
    verify_folder(target)


def test_other_adapters_of_the_folder_stay_at_their_versions(registry, target):
    pull(registry, PullRequest(target, ("ink",)))
    lock = read_lock(target / LOCK)
    assert lock is not None
    old = lock.adapters["ink"]
    publish(registry, "ink", seed=9)
    result = pull(registry, PullRequest(target, ("oil",)))
    assert result.lock.adapters["ink"] == old
    assert set(verify_folder(target).adapters) == {"ink", "oil"}


def test_a_lock_brings_back_the_same_bytes(registry, target, tmp_path):
    pull(registry, PullRequest(target, ("ink", "oil")))
    lock, wanted = read_lock(target / LOCK), snapshot(target)
    publish(registry, "ink", seed=9)
    pull(registry, PullRequest(target))
    assert snapshot(target) != wanted
    pull(registry, PullRequest(target, lock=lock))
    assert snapshot(target) == wanted
    pull(registry, PullRequest(tmp_path / "fresh", lock=lock))
    assert snapshot(tmp_path / "fresh") == wanted


def test_changing_the_format_leaves_no_file_of_the_old_one(registry, target):
    pull(registry, PullRequest(target))
    result = pull(registry, PullRequest(target, ("oil",), formats=("merged",)))
    assert result.removed == (BASE_ITEM,)
    assert not any(name.endswith("adapter") or name.startswith("base/") for name in snapshot(target))
    verify_folder(target)
    pull(registry, PullRequest(target, formats=("onnx-adapter", "required-inputs")))
    assert (target / "base" / "base-inputs.onnx").exists()
    verify_folder(target)


def test_channels_and_versions_can_be_named(registry, target):
    latest = read_lock_after(pull(registry, PullRequest(target, ("oil",))))["oil"]
    canary = publish(registry, "oil", seed=9, channel="canary")
    assert read_lock_after(pull(registry, PullRequest(target, ("oil@canary",))))["oil"] == canary
    assert read_lock_after(pull(registry, PullRequest(target, (f"oil@{latest}",))))["oil"] == latest
    with pytest.raises(InputError, match="did you mean"):
        pull(registry, PullRequest(target, ("oli",)))
    with pytest.raises(InputError):
        pull(registry, PullRequest(target, ("../oil",)))


def read_lock_after(result):
    """Concept -> version of a pull's lock."""
    return {concept: pin.version for concept, pin in result.lock.adapters.items()}


def test_a_format_that_was_not_published_is_named(registry, target):
    with pytest.raises(InputError, match=r"merged\.mlpackage\.zip.*coreml"):
        pull(registry, PullRequest(target, ("oil",), formats=("coreml",)))
    assert not target.exists()


def test_adapters_of_another_base_are_refused_with_both_digests(registry, target):
    other = "f" * 12
    publish(registry, "alien", base_id=other)
    with pytest.raises(BaseMismatchError, match=rf"{BASE_ID}, {other}"):
        pull(registry, PullRequest(target))
    result = pull(registry, PullRequest(target, base_id=BASE_ID))
    assert result.skipped == ("alien",)
    before = snapshot(target)
    with pytest.raises(BaseMismatchError, match=rf"alien belongs to base {other}.* {BASE_ID}"):
        pull(registry, PullRequest(target, ("alien",)))
    assert snapshot(target) == before


def test_any_changed_byte_of_a_pulled_folder_is_found_and_mended(registry, target):
    pull(registry, PullRequest(target, ("oil",), formats=("onnx-adapter", "required-inputs")))
    wanted = snapshot(target)
    verify_folder(target)
    for name, data in wanted.items():
        path = target / name
        for position in range(0, len(data), 3 if name == LOCK else 61):
            path.write_bytes(flip(data, position, position % 8))
            with pytest.raises(UserError):
                verify_folder(target)
        if name != LOCK:
            pull(registry, PullRequest(target, ("oil",), formats=("onnx-adapter", "required-inputs")))
        else:
            path.write_bytes(data)
        assert snapshot(target) == wanted


def test_added_files_and_links_are_found(registry, target, tmp_path):
    pull(registry, PullRequest(target))
    for name in ("extra.txt", "adapters/oil/x.json", "adapters/new/manifest.json", "base/x.onnx"):
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text("{}")
        with pytest.raises(IntegrityError, match="was added"):
            verify_folder(target)
        (target / name).unlink()
    verify_folder(target)
    (target / "adapters" / "link").symlink_to(tmp_path)
    with pytest.raises(IntegrityError, match="symbolic link"):
        verify_folder(target)


def test_a_byte_changed_in_the_registry_never_reaches_the_folder(registry, target):
    pull(registry, PullRequest(target))
    before = snapshot(target)
    version = publish(registry, "oil", seed=9)
    folder = registry.root / "adapters" / "oil" / version
    names = {"adapter.onnx_adapter": "oil", "manifest.json": f"oil@{version}", "../latest.json": "oil"}
    for path, wanted in [(folder / name, wanted) for name, wanted in names.items()]:
        data = path.read_bytes()
        for position in range(3, len(data), 61):
            path.write_bytes(flip(data, position))
            with pytest.raises(UserError):
                pull(registry, PullRequest(target, (wanted,)))
        path.write_bytes(data)
        assert snapshot(target) == before
    (folder / "adapter.onnx_adapter").unlink()
    with pytest.raises(IntegrityError, match="missing"):
        pull(registry, PullRequest(target))
    assert snapshot(target) == before


def forge(store, entries, contents=None, **changes):
    """A well-formed manifest by somebody who means harm, and a channel that points to it."""
    manifest = Manifest(tuple(entries), {**facts(), "concept": "oil", "ranks": {}, **changes})
    version = version_id(manifest.files)
    for name, data in (contents or {}).items():
        store.put(f"adapters/oil/{version}/{name}", data)
    store.put(f"adapters/oil/{version}/manifest.json", manifest.to_json())
    store.put("adapters/oil/latest.json", Channel(Target(version, sha256_of(manifest.to_json()), "now")).to_json())


@pytest.mark.parametrize(
    "path", ["../../evil.json", "/tmp/evil.json", "a/../../evil.json", "adapter_model.bin", ".x.json"]
)
def test_hostile_manifests_write_nothing(registry, target, path):
    forge(registry, [FileEntry(path, 2, sha256_of(b"{}"))])
    with pytest.raises(IntegrityError):
        pull(registry, PullRequest(target, ("oil",)))
    assert not target.exists()


def entries_of(contents):
    """Entries of these files."""
    return sorted(FileEntry(name, len(data), sha256_of(data)) for name, data in contents.items())


def test_unusable_weights_with_a_right_digest_are_refused(registry, target):
    pull(registry, PullRequest(target, ("oil",), formats=("peft",)))
    before = snapshot(target)
    nan = adapter_tensors()
    nan["base_model.model.downsample.conv.lora_A.weight"][0] = np.nan
    cases = [
        (adapter_files(tensors=nan), {}, "NaN"),
        ({**adapter_files(), "adapter_model.safetensors": b"PK\x03\x04pickle"}, {}, "perhaps a torch pickle"),
        (adapter_files(base_id="f" * 12), {}, "belongs to base ffffffffffff"),
        (adapter_files(), {"ranks": {"downsample.conv": 7}}, "other ranks"),
    ]
    for contents, changes, message in cases:
        forge(registry, entries_of(contents), contents, **changes)
        with pytest.raises(IntegrityError, match=message):
            pull(registry, PullRequest(target, ("oil",), formats=("peft",)))
        assert snapshot(target) == before
    contents = {**adapter_files(), "lora_inputs.safetensors": save({"downsample.conv.lora_A": np.zeros((5, 4), "f4")})}
    forge(registry, entries_of(contents), contents, ranks={"downsample.conv": 2})
    with pytest.raises(IntegrityError, match="rank 2"):
        pull(registry, PullRequest(target, ("oil",), formats=("required-inputs",)))


def test_a_killed_pull_leaves_whole_files_and_the_next_one_completes(registry, target):
    pull(registry, PullRequest(target))
    old = snapshot(target)
    for seed, concept in enumerate(CONCEPTS):
        publish(registry, concept, seed=seed + 20)
    fresh = target.with_name("fresh")
    pull(registry, PullRequest(fresh))
    new, killed, backup = snapshot(fresh), 0, target.with_name("backup")
    shutil.copytree(target, backup)
    for step in range(1, 60, 4):
        shutil.rmtree(target)
        shutil.copytree(backup, target)
        command = [sys.executable, str(KILL_AT), "pull", str(step), str(registry.root), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        killed += 1
        for name, data in snapshot(target).items():
            assert data in (old.get(name), new.get(name)), (step, name)
        pull(registry, PullRequest(target))
        assert snapshot(target) == new
        verify_folder(target)
    assert killed >= 5
    assert not (target / STAGING).exists()


def _environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_what_a_killed_pull_had_brought_is_not_fetched_again(registry, target):
    command = [sys.executable, str(KILL_AT), "pull", "7", str(registry.root), str(target)]
    done = subprocess.run(command, capture_output=True, check=False, env=_environment())
    assert done.returncode == -signal.SIGKILL
    staged = [path for path in (target / STAGING).rglob("*") if path.suffix in (".onnx", ".onnx_adapter")]
    assert staged
    result = pull(registry, PullRequest(target))
    assert result.files == 4 - len(staged)
    verify_folder(target)


LIMITED = """
import os, resource, sys
from pathlib import Path
from e2gan_cluster.errors import UserError
from e2gan_cluster.storage import open_store
from e2gan_cluster.storage.pull import pull
from e2gan_cluster.storage.pull_plan import PullRequest
if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))
elif os.getuid() == 0:
    os.setuid(65534)
try:
    pull(open_store(sys.argv[2]), PullRequest(Path(sys.argv[3])))
except UserError as error:
    print(error)
else:
    raise SystemExit("no error")
"""


def _limited(kind, registry, target):
    command = [sys.executable, "-c", LIMITED, kind, str(registry), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_stops_the_pull_and_keeps_the_old_files(registry, target):
    pull(registry, PullRequest(target, ("oil",), formats=("merged",)))
    before = snapshot(target)
    message = _limited("full", registry.root, target)
    assert "base.onnx" in message
    assert "free disk space" in message
    assert snapshot(target) == before
    verify_folder(target)
    pull(registry, PullRequest(target))
    verify_folder(target)


def test_a_target_that_cannot_be_written_is_named(registry):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        shutil.copytree(registry.root, Path(folder) / "registry")
        Path(folder).chmod(0o555)
        message = _limited("read-only", f"{folder}/registry", f"{folder}/app")
        Path(folder).chmod(0o755)
    assert f"{folder}/app" in message
    assert "writable" in message


def test_a_target_that_is_a_file_or_a_link_is_refused(registry, target, tmp_path):
    target.parent.mkdir()
    target.write_text("a file")
    with pytest.raises(UserError, match="effects"):
        pull(registry, PullRequest(target))
    assert target.read_text() == "a file"
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "adapters").symlink_to(tmp_path)
    with pytest.raises(IntegrityError, match="symbolic link"):
        pull(registry, PullRequest(linked))


def test_two_pulls_into_one_folder_do_not_mix(registry, target):
    (target / STAGING).mkdir(parents=True)
    with (target / STAGING / "lock").open("ab") as guard:
        import fcntl

        fcntl.flock(guard, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another pull"):
            pull(registry, PullRequest(target))
    pull(registry, PullRequest(target))


def test_a_damaged_lock_is_refused_or_replaced_when_names_are_given(registry, target):
    pull(registry, PullRequest(target))
    (target / LOCK).write_text("{}\n")
    with pytest.raises(UserError, match="lock"):
        verify_folder(target)
    with pytest.raises(UserError, match="lock"):
        pull(registry, PullRequest(target))
    pull(registry, PullRequest(target, CONCEPTS))
    verify_folder(target)
    (target / LOCK).write_bytes(canonical.dump({**json.loads((target / LOCK).read_bytes()), "lock_format": 2}))
    with pytest.raises(InputError, match="newer e2gan"):
        verify_folder(target)


def test_pull_from_s3_over_failures_and_cuts(faults, faulty_store, target):
    fill(faulty_store)
    faults.fail_rate, faults.cut_at, faults.cuts = 0.15, 200, 3
    result = pull(faulty_store, PullRequest(target, workers=4))
    assert set(result.changed) == {*CONCEPTS, BASE_ITEM}
    verify_folder(target)
    faults.fail_rate, faults.requests[:] = 0.0, []
    assert pull(faulty_store, PullRequest(target)).changed == ()
    assert len(faults.requests) == 1  # one listing tells that no pointer moved
    version = publish(faulty_store, "oil", seed=9)
    assert read_lock_after(pull(faulty_store, PullRequest(target)))["oil"] == version


def test_a_pull_by_lock_with_nothing_changed_asks_the_server_nothing(faults, faulty_store, target):
    fill(faulty_store)
    lock = pull(faulty_store, PullRequest(target)).lock
    faults.requests[:] = []
    assert pull(faulty_store, PullRequest(target, lock=lock)).changed == ()
    assert faults.requests == []


@pytest.mark.parametrize("damage", ["garbage", "flipped"])
def test_a_damaged_cache_of_pointers_costs_requests_and_nothing_else(
    faults, faulty_store, target, tmp_path, monkeypatch, damage
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fill(faulty_store)
    wanted = pull(faulty_store, PullRequest(target)).lock
    [cache] = (tmp_path / "cache").rglob("pointers-*.json")
    text = cache.read_text()
    cache.write_text("[" if damage == "garbage" else text.replace(wanted.adapters["oil"].version, "0" * 12))
    faults.requests[:] = []
    assert pull(faulty_store, PullRequest(target)).lock == wanted
    assert len(faults.requests) == 1 + (3 if damage == "garbage" else 1)
    faults.requests[:] = []
    assert pull(faulty_store, PullRequest(target)).lock == wanted
    assert len(faults.requests) == 1


def test_pull_works_with_reading_rights_only(faults, faulty_store, target):
    fill(faulty_store)
    faults.forbid = ("PUT", "POST", "DELETE")
    pull(faulty_store, PullRequest(target))
    verify_folder(target)


def test_pull_by_presigned_links_needs_no_credentials(s3_store, target, tmp_path, monkeypatch):
    fill(s3_store)
    links = tmp_path / "build.links.json"
    write_links(s3_store, links, ("oil", "ink"), "latest", ["onnx-adapter"], 600)
    assert links.stat().st_mode & 0o077 == 0
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    result = pull(open_store(str(links)), PullRequest(target, ("oil", "ink")))
    assert set(result.changed) == {"oil", "ink", BASE_ITEM}
    verify_folder(target)
    with pytest.raises(UserError):
        pull(open_store(str(links)), PullRequest(target, ("snow",)))
