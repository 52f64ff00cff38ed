"""Stores on disk and on SeaweedFS, and a registry folder for pulls."""

import secrets

import pytest

from e2gan_cluster.storage import NetworkOptions, open_store
from tests.storage.fault_proxy import Faults, fault_proxy

QUICK = NetworkOptions(
    deadline_s=20, connect_timeout_s=2, read_timeout_s=5, first_wait_s=0.05, max_wait_s=0.3,
    multipart_bytes=6 << 20, part_bytes=5 << 20,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Pulls remember pointers in the user's cache folder: not in that of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    """The same store twice: a folder, and a fresh prefix on SeaweedFS."""
    if request.param == "folder":
        return open_store(tmp_path / "store")
    return request.getfixturevalue("s3_store")


@pytest.fixture
def s3_store(s3_env):
    """A fresh prefix on SeaweedFS."""
    return open_store(f"s3://{s3_env.bucket}/t-{secrets.token_hex(6)}", QUICK)


@pytest.fixture
def faults(s3_env, monkeypatch):
    """Faults of a proxy between this process and SeaweedFS."""
    found = Faults(credentials=(s3_env.access_key, s3_env.secret_key))
    with fault_proxy(s3_env.endpoint, found) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        yield found


@pytest.fixture
def faulty_store(faults, s3_env):
    """A fresh prefix behind the proxy."""
    return open_store(f"s3://{s3_env.bucket}/t-{secrets.token_hex(6)}", QUICK)
