"""Channel pointers read before, kept by etag in the user's cache folder: a pull with nothing new needs one listing.

The folder is ``$XDG_CACHE_HOME/e2gan`` (``~/.cache/e2gan``). Without it everything works, a little slower.
"""

import json
import os
from pathlib import Path

from e2gan_cluster.errors import IntegrityError, StoreError
from e2gan_cluster.storage import files
from e2gan_cluster.storage.channels import Channel
from e2gan_cluster.storage.checks import sha256_of


class PointerCache:
    """Pointers of one registry.

    Args:
        url: The registry.
    """

    def __init__(self, url: str) -> None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._path = home / "e2gan" / f"pointers-{sha256_of(url.encode())[:16]}.json"
        self._changed = False
        try:
            content = json.loads(self._path.read_bytes())
            self._entries = {str(key): (str(etag), str(text)) for key, (etag, text) in content.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            self._entries: dict[str, tuple[str, str]] = {}

    def get(self, key: str, etag: str) -> Channel | None:
        """The pointer, if this etag was seen before; damage in the cache reads as never seen."""
        known = self._entries.get(key)
        if known is None or not etag or known[0] != etag:
            return None
        try:
            return Channel.parse(known[1].encode(), str(self._path))
        except IntegrityError:
            return None

    def put(self, key: str, etag: str, data: bytes) -> None:
        """Remember a pointer."""
        self._entries[key] = (etag, data.decode())
        self._changed = True

    def save(self) -> None:
        """Write what is new; a cache that cannot be written is no failure."""
        if not self._changed:
            return
        try:
            files.write(self._path, json.dumps(self._entries).encode())
        except StoreError:
            self._changed = False
