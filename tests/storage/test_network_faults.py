"""A network and a server that misbehave, between our store and a real SeaweedFS."""

import hashlib
import os
import secrets
import threading
import time
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from e2gan_cluster.errors import IntegrityError, StoreError
from e2gan_cluster.storage import open_store
from e2gan_cluster.storage.http import HttpStore
from tests.storage.conftest import QUICK
from tests.storage.fault_proxy import Faults, fault_proxy
from tests.storage.registry_parts import publish

DATA = os.urandom(1 << 20)
DIGEST = hashlib.sha256(DATA).hexdigest()


def with_options(store, **changes):
    """The same prefix, more or less patient."""
    return type(store)(store._bucket, store._root.rstrip("/"), replace(QUICK, **changes))


def test_a_server_that_fails_for_a_while_is_waited_for(faults, faulty_store):
    faults.fail_until = time.monotonic() + 2
    assert faulty_store.put_new("k", b"v")
    assert faulty_store.get("k") == b"v"


def test_random_failures_change_no_answer(faults, faulty_store):
    faults.fail_rate = 0.3
    for number in range(15):
        assert faulty_store.put_new(f"k{number}", b"first")
        assert not faulty_store.put_new(f"k{number}", b"second")
    assert sorted(info.key for info in faulty_store.list()) == sorted(f"k{n}" for n in range(15))


def test_a_server_that_stays_down_gives_a_clear_error_and_publishes_nothing(faults, faulty_store, s3_store):
    faults.fail_rate = 1.0
    hasty = with_options(faulty_store, deadline_s=0.5)
    begin_s = time.monotonic()
    with pytest.raises(StoreError, match=r"gave up after .* attempts: .*50[03]"):
        publish(hasty)
    assert time.monotonic() - begin_s < 30
    faults.fail_rate = 0.0
    assert list(faulty_store.list()) == []


def test_a_lost_answer_is_not_mistaken_for_somebody_else_s_win(faults, faulty_store):
    faults.lose_answers = 1
    assert faulty_store.put_new("k", b"mine")
    _, etag = faulty_store.get_with_etag("k")
    faults.lose_answers = 1
    assert faulty_store.put_if_match("k", b"next", etag)
    assert faulty_store.get("k") == b"next"
    assert not faulty_store.put_new("k", b"next")


def test_conflict_is_retried(faults, faulty_store):
    faults.conflicts = 3
    assert faulty_store.put_new("k", b"v")
    assert len([line for line in faults.requests if line.startswith("PUT")]) == 4


def test_a_download_cut_in_the_middle_goes_on_where_it_was(faults, faulty_store, tmp_path):
    faulty_store.put("big", DATA)
    faults.cut_at, faults.cuts, faults.bytes_sent = 400_000, 2, 0
    faulty_store.get_file("big", tmp_path / "big", sha256=DIGEST, size=len(DATA))
    assert (tmp_path / "big").read_bytes() == DATA
    assert faults.cuts == 0
    assert faults.bytes_sent < 1.2 * len(DATA)
    faults.cuts = 1
    assert faulty_store.get("big", sha256=DIGEST) == DATA


def test_a_trickling_server_is_given_up_and_the_next_process_goes_on(faults, faulty_store, tmp_path):
    faulty_store.put("big", DATA)
    faults.bytes_per_s = 100_000
    with pytest.raises(StoreError, match="less than 2000 KiB/s"):
        with_options(faulty_store, deadline_s=1, min_bytes_per_s=2_048_000).get_file(
            "big", tmp_path / "big", sha256=DIGEST, size=len(DATA)
        )
    assert not (tmp_path / "big").exists()
    faults.bytes_per_s, faults.bytes_sent = 0, 0
    faulty_store.get_file("big", tmp_path / "big", sha256=DIGEST, size=len(DATA))
    assert faults.bytes_sent < len(DATA)
    assert [path.name for path in tmp_path.iterdir()] == ["big"]


def test_a_silent_server_runs_into_the_time_out(faults, faulty_store):
    faulty_store.put("k", b"x" * 100)
    faults.delay_s = 2
    with pytest.raises(StoreError, match=r"gave up.*[Tt]imeout"):
        with_options(faulty_store, deadline_s=0.5, read_timeout_s=0.3).get("k")


def test_the_probe_refuses_a_server_that_ignores_conditions_by_name(faults, faulty_store):
    faults.strip_conditions = True
    with pytest.raises(StoreError, match=r"SeaweedFS.*ignores If-None-Match"):
        faulty_store.probe()
    assert list(faulty_store.list()) == []


def test_wrong_credentials_and_missing_buckets_are_named_without_secrets(s3_env, monkeypatch):
    missing = open_store("s3://no-such-bucket/x", QUICK)
    for use in (missing.probe, lambda: list(missing.list()), lambda: missing.get("k")):
        with pytest.raises(StoreError, match="NoSuchBucket") as caught:
            use()
        assert "create" in caught.value.fix
    for name, value in (("AWS_SECRET_ACCESS_KEY", "wrong-secret"), ("AWS_ACCESS_KEY_ID", "wrong-key-id")):
        monkeypatch.setenv(name, value)
        with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") as caught:
            open_store(f"s3://{s3_env.bucket}/x", QUICK).probe()
        for secret in ("testsecret", "wrong-secret", "wrong-key-id"):
            assert secret not in str(caught.value)


def test_no_permission_to_write_is_said(faults, faulty_store):
    faults.forbid = ("PUT",)
    with pytest.raises(StoreError, match="403") as caught:
        faulty_store.put_new("k", b"")
    assert "permissions" in caught.value.fix


def test_no_server_at_all_is_said(monkeypatch, s3_env):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"gave up.*127\.0\.0\.1:9"):
        open_store("s3://adapters/x", replace(QUICK, deadline_s=0.3)).get("k")


def test_a_large_upload_survives_failures_and_leaves_no_parts(faults, faulty_store, tmp_path):
    (tmp_path / "big").write_bytes(os.urandom(11 << 20))
    faults.fail_rate = 0.2
    assert faulty_store.put_new_file("big", tmp_path / "big")
    faults.fail_rate = 0.0
    assert faulty_store.head("big").size == 11 << 20
    assert faulty_store.leftovers(0) == []


@pytest.fixture
def web_folder(tmp_path):
    """A folder served by a plain web server (no ranges, no etags), behind the proxy."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    faults = Faults()
    with fault_proxy(f"http://127.0.0.1:{server.server_address[1]}", faults) as address:
        yield folder, faults, address
    server.shutdown()
    server.server_close()


def test_plain_http_reads_verify_and_survive_cuts(web_folder, tmp_path):
    folder, faults, address = web_folder
    (folder / "d").mkdir()
    (folder / "d" / "big").write_bytes(DATA)
    store = open_store(f"{address}/?token=hidden-token", QUICK)
    assert store.url == address
    info = store.head("d/big")
    assert info is not None
    assert info.size == len(DATA)
    assert store.head("no") is None
    faults.cut_at, faults.cuts = 500_000, 2
    store.get_file("d/big", tmp_path / "big", sha256=DIGEST, size=len(DATA))
    assert (tmp_path / "big").read_bytes() == DATA
    assert all("token=hidden-token" in line for line in faults.requests)
    with pytest.raises(KeyError):
        store.get("no")
    with pytest.raises(IntegrityError):
        store.get("d/big", sha256="0" * 64)
    faults.forbid = ("GET",)
    with pytest.raises(StoreError, match="403") as caught:
        store.get("d/big")
    assert "hidden-token" not in str(caught.value) + repr(store)
    for refused in (lambda: store.put_new("k", b""), lambda: list(store.list()), store.probe):
        with pytest.raises(StoreError, match="only be read"):
            refused()


def test_presigned_links_read_without_credentials(s3_store, monkeypatch, tmp_path):
    s3_store.put("k", DATA)
    links = {"k": s3_store.presign("k", 600)}
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = HttpStore(links["k"].partition("?")[0], QUICK, links)
    assert store.get("k", sha256=DIGEST) == DATA
    with pytest.raises(KeyError):
        store.get(f"other-{secrets.token_hex(2)}")
