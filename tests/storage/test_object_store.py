"""What every store promises, on disk and on SeaweedFS."""

import hashlib
import os
import pickle
import subprocess
import sys
import time

import pytest

from e2gan_cluster.errors import ConfigError, IntegrityError, StoreError
from e2gan_cluster.storage import open_store
from e2gan_cluster.storage.files import TEMP_PREFIX


def test_create_only_put_never_replaces(store):
    assert store.put_new("a/b.bin", b"first")
    assert not store.put_new("a/b.bin", b"second")
    assert store.get("a/b.bin") == b"first"


def test_compare_and_swap_needs_the_current_content(store):
    assert store.put_if_match("p.json", b"1", None)
    assert not store.put_if_match("p.json", b"2", None)
    data, etag = store.get_with_etag("p.json")
    assert data == b"1"
    assert store.put_if_match("p.json", b"2", etag)
    assert not store.put_if_match("p.json", b"3", etag)
    assert store.get("p.json") == b"2"
    store.delete("p.json")
    assert not store.put_if_match("p.json", b"4", etag)


def test_missing_objects_are_key_errors_and_none(store, tmp_path):
    assert store.head("no/such") is None
    for read in (store.get, store.get_with_etag, lambda key: store.get_file(key, tmp_path / "f")):
        with pytest.raises(KeyError):
            read("no/such")
    store.delete("no/such")
    assert list(tmp_path.glob("f*")) == []


def test_reads_are_verified_against_digest_and_size(store, tmp_path):
    store.put("x", b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    assert store.get("x", sha256=digest, size=7) == b"content"
    with pytest.raises(IntegrityError, match="sha256"):
        store.get("x", sha256="0" * 64)
    with pytest.raises(IntegrityError, match="expected 8"):
        store.get("x", size=8)
    with pytest.raises(IntegrityError):
        store.get_file("x", tmp_path / "f", sha256="0" * 64)
    assert {path.name for path in tmp_path.iterdir()} <= {"store"}
    store.get_file("x", tmp_path / "f", sha256=digest, size=7)
    assert (tmp_path / "f").read_bytes() == b"content"


def test_listing_is_complete_and_in_key_order(store):
    names = [f"d/{i:02d}" for i in range(7)] + ["d.txt", "e"]
    for name in reversed(names):
        store.put(name, b"12")
    if hasattr(store, "_client"):  # pages of three, as if there were thousands
        event = "provide-client-params.s3.ListObjectsV2"
        store._client.meta.events.register(event, lambda params, **_: {**params, "MaxKeys": 3})
    assert [info.key for info in store.list("d/")] == names[:7]
    assert [info.key for info in store.list()] == sorted(names)
    assert {info.size for info in store.list()} == {2}
    assert list(store.list("zzz/")) == []


def test_listings_and_look_ups_agree_on_when_an_object_was_written(store):
    before_s = time.time()
    store.put("x", b"1")
    [listed], looked_up = list(store.list()), store.head("x")
    assert looked_up is not None
    assert abs(listed.modified_s - looked_up.modified_s) < 1.1
    assert before_s - 1.1 < listed.modified_s < time.time() + 1.1


HOSTILE = ["", "../x", "a/../../x", "/etc/x", "a//b", "a/./b", "nul\0", "new\nline", "back\\slash", "x" * 1000]


@pytest.mark.parametrize("key", HOSTILE)
def test_keys_that_could_leave_the_root_are_refused(store, key, tmp_path):
    for use in (store.get, store.head, store.delete, lambda k: store.put_new(k, b""), lambda k: store.put(k, b"")):
        with pytest.raises(ValueError, match="key"):
            use(key)


def test_symbolic_links_out_of_the_root_are_refused(tmp_path):
    (tmp_path / "secret").write_text("s")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "link").symlink_to(tmp_path)
    store = open_store(tmp_path / "store")
    for use in (lambda: store.get("link/secret"), lambda: store.put_new("link/new", b"")):
        with pytest.raises(StoreError, match="symbolic link"):
            use()
    assert not (tmp_path / "new").exists()


def test_large_files_go_up_in_parts_and_come_back_whole(s3_store, tmp_path):
    big = tmp_path / "big"
    big.write_bytes(os.urandom(11 << 20))
    digest = hashlib.sha256(big.read_bytes()).hexdigest()
    assert s3_store.put_new_file("big", big)
    assert not s3_store.put_new_file("big", big)
    s3_store.get_file("big", tmp_path / "back", sha256=digest, size=11 << 20)
    assert [info.key for info in s3_store.list()] == ["big"]


def test_small_files_are_put_from_disk(store, tmp_path):
    (tmp_path / "small").write_bytes(b"abc")
    assert store.put_new_file("small", tmp_path / "small")
    assert not store.put_new_file("small", tmp_path / "small")
    assert store.get("small") == b"abc"


def test_a_store_pickles_as_its_address(store):
    store.put("k", b"v")
    assert pickle.loads(pickle.dumps(store)).get("k") == b"v"


def test_probe_accepts_good_servers_and_leaves_nothing(store):
    store.probe()
    assert list(store.list()) == []


def test_unfinished_multipart_uploads_are_listed_and_aborted(s3_store):
    where = s3_store._where("work/uploads/dead")
    s3_store._client.create_multipart_upload(**where)
    s3_store.put("work/uploads/unplaced", b"x")
    kinds = {leftover.name: leftover.kind for leftover in s3_store.leftovers(0)}
    assert set(kinds) == {"work/uploads/dead", "work/uploads/unplaced"}
    assert s3_store.leftovers(3600) == []
    s3_store.leftovers(0, remove=True)
    assert s3_store.leftovers(0) == []


def test_temporary_files_of_killed_writers_are_hidden_listed_and_removed(tmp_path):
    store = open_store(tmp_path)
    store.put("a/x", b"1")
    (tmp_path / "a" / f"{TEMP_PREFIX}1-dead").write_bytes(b"half")
    assert [info.key for info in store.list()] == ["a/x"]
    assert [leftover.name for leftover in store.leftovers(0, remove=True)] == [f"a/{TEMP_PREFIX}1-dead"]
    assert store.leftovers(0) == []


DISK_FULL = """
import resource, sys
from pathlib import Path
from e2gan_cluster.errors import StoreError
from e2gan_cluster.storage import open_store
store, target = open_store(sys.argv[1]), Path(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
data = bytes(1_000_000)
acts = (lambda: store.put_new("new", data), lambda: store.put("pointer", data), lambda: store.get_file("big", target))
for act in acts:
    try:
        act()
    except StoreError as error:
        assert "free disk space" in error.fix and "1000000 bytes" in str(error) or "target" in str(error), error
    else:
        raise SystemExit("no error")
"""


def test_full_disk_is_a_clear_error_and_leaves_no_partial_file(tmp_path):
    store = open_store(tmp_path / "store")
    store.put("pointer", b"old")
    store.put("big", bytes(1_000_000))
    command = [sys.executable, "-c", DISK_FULL, str(tmp_path / "store"), str(tmp_path / "target")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {info.key for info in store.list()} == {"pointer", "big"}
    assert store.get("pointer") == b"old"
    assert not (tmp_path / "target").exists()
    assert list(tmp_path.rglob(f"{TEMP_PREFIX}*")) == []


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match="store"):
        open_store(tmp_path / "store").put_new("a/b", b"")


@pytest.mark.parametrize(
    "url", ["", "ftp://x/y", "s3://", "s3://key:secret@bucket/x", "s3://ab/x", "https://u:p@host/x"]
)
def test_unusable_addresses_are_config_errors_that_show_no_secret(url):
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)
    assert ":p@" not in str(caught.value)
