"""Reading a registry over plain HTTPS: a static file server, a CDN, or a bucket opened for reading."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit, urlunsplit

from e2gan_cluster.errors import ConfigError, StoreError
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import Leftover, ObjectInfo
from e2gan_cluster.storage.checks import check_bytes
from e2gan_cluster.storage.download import CHUNK_BYTES, Body, Changed, Cut, fetch, fetch_to_file
from e2gan_cluster.storage.retry import NetworkOptions, Retry


class HttpStore:
    """Read-only objects below a base URL.

    A query in the base URL (a shared access token, a CDN signature) is sent with every request and never shown.
    Proxies are taken from HTTPS_PROXY, HTTP_PROXY and NO_PROXY.

    Args:
        base_url: ``https://host/path`` or ``https://host/path?token``.
        options: Deadline and time-outs.
        links: Key -> presigned address; given, only these keys exist (see ``e2gan adapters links``).
    """

    def __init__(
        self, base_url: str, options: NetworkOptions | None = None, links: Mapping[str, str] | None = None
    ) -> None:
        parts = urlsplit(base_url)
        if not parts.hostname or parts.username or parts.password:
            raise ConfigError(
                "storage: an https:// address needs a host and may not hold a user name or password",
                "write https://host/path, with an access token in the query if there is one",
            )
        self._parts = parts._replace(path=parts.path.rstrip("/"), fragment="")
        self._options = options or NetworkOptions()
        self._links = links
        self._made: tuple[int, Any] | None = None

    def __reduce__(self) -> tuple[type["HttpStore"], tuple[Any, ...]]:
        return (type(self), (urlunsplit(self._parts), self._options, self._links))

    def __repr__(self) -> str:
        return f"HttpStore({self.url!r})"

    @property
    def url(self) -> str:
        """The base URL without its query."""
        return urlunsplit(self._parts._replace(query=""))

    @property
    def _pool(self) -> Any:
        if self._made is None or self._made[0] != os.getpid():
            import urllib.request

            import urllib3

            timeout = urllib3.Timeout(connect=self._options.connect_timeout_s, read=self._options.read_timeout_s)
            settings: dict[str, Any] = {"maxsize": self._options.connections, "timeout": timeout, "retries": False}
            proxy = urllib.request.getproxies().get(self._parts.scheme)
            if proxy and not urllib.request.proxy_bypass(self._parts.hostname or ""):
                pool: Any = urllib3.ProxyManager(proxy, **settings)
            else:
                pool = urllib3.PoolManager(**settings)
            self._made = (os.getpid(), pool)
        return self._made[1]

    def _address(self, key: str) -> str:
        if self._links is not None:
            return self._links[keys.check_key(key)]
        return urlunsplit(self._parts._replace(path=f"{self._parts.path}/{quote(keys.check_key(key))}"))

    def _request(self, method: str, key: str, headers: dict[str, str]) -> Any:
        """One attempt; raises `Cut`, `Changed`, KeyError or StoreError."""
        import urllib3

        address = self._address(key)
        try:
            answer = self._pool.request(
                method, address, headers={"Accept-Encoding": "identity", **headers}, preload_content=False
            )
        except urllib3.exceptions.HTTPError as error:
            # Its text may hold the address with its token.
            raise Cut(f"{type(error).__name__} at {self._parts.hostname}") from None
        status = answer.status
        if status in (200, 206):
            return answer
        answer.drain_conn()
        answer.release_conn()
        if status in (404, 410):
            raise KeyError(key)
        if status in (412, 416):
            raise Changed(f"HTTP {status}")
        if status >= 500 or status in (408, 429):
            raise Cut(f"HTTP {status}")
        fix = (
            "check the address and its access token (it may have expired)"
            if status in (401, 403)
            else "check the address"
        )
        raise StoreError(f"reading {self.url}/{key}: HTTP {status}", fix)

    @contextmanager
    def _open_at(self, key: str, offset: int, etag: str | None) -> Iterator[Body]:
        import urllib3

        headers = {"Range": f"bytes={offset}-"} if offset else {}
        if etag:
            headers["If-Match"] = etag
        answer = self._request("GET", key, headers)
        whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
        resumed = answer.status == 206 and whole.isdigit()
        length = int(answer.headers.get("Content-Length", -1))

        def chunks() -> Iterator[bytes]:
            try:
                yield from answer.stream(CHUNK_BYTES, decode_content=False)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise Cut(f"{type(error).__name__} at {self._parts.hostname}") from None

        try:
            if length < 0 and not resumed:
                raise StoreError(
                    f"reading {self.url}/{key}: the server does not say how long it is", "use a server that does"
                )
            # A weak etag may not be used to match a range.
            version = answer.headers.get("ETag", "")
            version = "" if version.startswith("W/") else version
            yield Body(chunks(), int(whole) if resumed else length, version, offset if resumed else 0)
        finally:
            answer.close()

    def _get(self, key: str, sha256: str | None, size: int | None) -> tuple[bytes, str]:
        sink = BytesIO()
        retry = Retry(self._options, f"reading {self.url}/{key}")
        etag = fetch(lambda offset, version: self._open_at(key, offset, version), sink, retry, size=size)
        check_bytes(f"{self.url}/{key}", sink.getvalue(), sha256, size)
        return sink.getvalue(), etag

    def get(self, key: str, *, sha256: str | None = None, size: int | None = None) -> bytes:
        """See `ObjectStore.get`."""
        return self._get(key, sha256, size)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """See `ObjectStore.get_with_etag`."""
        return self._get(key, None, None)

    def get_file(self, key: str, path: Path, *, sha256: str | None = None, size: int | None = None) -> None:
        """See `ObjectStore.get_file`."""
        keys.check_key(key)
        retry = Retry(self._options, f"downloading {self.url}/{key}")
        fetch_to_file(
            f"{self.url}/{key}", lambda offset, etag: self._open_at(key, offset, etag), path, retry, sha256, size
        )

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.head`."""
        retry = Retry(self._options, f"looking up {self.url}/{key}")
        while True:
            try:
                answer = self._request("HEAD", key, {})
            except KeyError:
                return None
            except (Cut, Changed) as error:
                retry.wait(str(error))
            else:
                answer.release_conn()
                return ObjectInfo(key, int(answer.headers.get("Content-Length", 0)), answer.headers.get("ETag", ""))

    def _refuse(self) -> NoReturn:
        raise StoreError(
            f"{self.url} can only be read, key by key", "use a folder or s3://bucket/prefix for this command"
        )

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Not possible over plain HTTPS."""
        self._refuse()

    def put_new(self, key: str, data: bytes) -> bool:
        """Not possible: read-only."""
        self._refuse()

    def put_new_file(self, key: str, path: Path) -> bool:
        """Not possible: read-only."""
        self._refuse()

    def put_if_match(self, key: str, data: bytes, etag: str | None) -> bool:
        """Not possible: read-only."""
        self._refuse()

    def put(self, key: str, data: bytes) -> None:
        """Not possible: read-only."""
        self._refuse()

    def delete(self, key: str) -> None:
        """Not possible: read-only."""
        self._refuse()

    def leftovers(self, older_than_s: float = 86_400, *, remove: bool = False) -> Sequence[Leftover]:
        """Nothing is ever written here."""
        return ()

    def probe(self) -> None:
        """Not possible: read-only."""
        self._refuse()


def open_links(path: Path, options: NetworkOptions | None = None) -> HttpStore:
    """A registry of presigned links, as ``e2gan adapters links`` writes them.

    Raises:
        ConfigError: The file is not that.
    """
    try:
        content = json.loads(path.read_bytes())
        links = {keys.check_key(key): str(url) for key, url in content["links"].items()}
        return HttpStore(str(content["base"]), options, links)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path} is not a file of links", "make one with e2gan adapters links") from None
