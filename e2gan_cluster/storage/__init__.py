"""Object store (folder or S3), the names of all keys, manifests, the adapter registry.

Example:
    store = open_store("s3://effects/demo")
    store.probe()
"""

from pathlib import Path

from e2gan_cluster.errors import ConfigError
from e2gan_cluster.storage.base import ObjectInfo, ObjectStore
from e2gan_cluster.storage.local import LocalStore
from e2gan_cluster.storage.retry import NetworkOptions

LINKS_SUFFIX = ".links.json"

__all__ = ["LINKS_SUFFIX", "NetworkOptions", "ObjectInfo", "ObjectStore", "open_store"]


def open_store(url: str | Path, options: NetworkOptions | None = None) -> ObjectStore:
    """Open a storage root; connects at the first operation.

    Args:
        url: A folder, ``s3://bucket/prefix``, or, for reading only, ``https://...`` or a file of presigned links
            (``*.links.json``, see ``e2gan adapters links``).
        options: Patience with the network.

    Raises:
        ConfigError: The address cannot be used.
    """
    scheme, separator, rest = str(url).partition("://")
    if not separator or isinstance(url, Path):
        if not str(url):
            raise ConfigError("storage: the address is empty", "name a folder or s3://bucket/prefix")
        if str(url).endswith(LINKS_SUFFIX):
            from e2gan_cluster.storage.http import open_links

            return open_links(Path(url), options)
        return LocalStore(url)
    if scheme == "file":
        return LocalStore(rest)
    if scheme == "s3":
        from e2gan_cluster.storage.s3 import S3Store

        bucket, _, prefix = rest.partition("/")
        try:
            return S3Store(bucket, prefix.strip("/"), options)
        except ValueError as error:
            raise ConfigError(f"storage: {error}", "write s3://bucket/prefix") from None
    if scheme in ("http", "https"):
        from e2gan_cluster.storage.http import HttpStore

        return HttpStore(str(url), options)
    raise ConfigError(
        f"storage: unknown kind of address {scheme}://", "use a folder, s3://bucket/prefix or https://..."
    )
