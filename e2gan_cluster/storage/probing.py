"""The start-up probe: does a store keep its promises about conditional writes?"""

import secrets
from collections.abc import Callable

from e2gan_cluster.errors import StoreError
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore

_FIX = "use AWS S3, SeaweedFS, MinIO, Ceph or another server with conditional writes, or a folder"


def probe_store(store: ObjectStore, server: str | Callable[[], str]) -> None:
    """Write with every condition the pipeline relies on, then clean up.

    Args:
        store: The store to try.
        server: Name of the server for messages (called after the first answer, when the server has named itself).

    Raises:
        StoreError: A condition was ignored, or the store cannot be written or read back.
    """
    key = keys.probe(secrets.token_hex(8))
    try:
        problem = _first_problem(store, key)
    finally:
        store.delete(key)
    if problem:
        name = server if isinstance(server, str) else server()
        raise StoreError(f"{store.url}: {name} {problem}: racing writers would overwrite each other's work", _FIX)


def _first_problem(store: ObjectStore, key: str) -> str | None:
    if not store.put_new(key, b"first"):
        return "says that a key exists which nobody wrote"
    if store.put_new(key, b"second"):
        return "ignores If-None-Match (create-only writes)"
    data, etag = store.get_with_etag(key)
    if data != b"first":
        return "does not give back what was written"
    if not store.put_if_match(key, b"third", etag):
        return "refuses If-Match with the right etag (compare-and-swap)"
    if store.put_if_match(key, b"fourth", etag):
        return "ignores If-Match (compare-and-swap)"
    if store.get(key) != b"third":
        return "does not give back what was written"
    return None
