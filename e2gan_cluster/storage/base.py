"""The object store interface: what every stage reads and writes through.

Example:
    store = open_store("runs/demo")            # e2gan_cluster.storage
    store.put_new("pairs/oil/0.parquet", data)  # False if it was there already
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object.

    Attributes:
        key: Key relative to the storage root.
        size: Bytes.
        etag: Opaque version of the content, for `put_if_match`; empty in listings of a folder.
        modified_s: When it was written, seconds since 1970; 0 where the store does not say.
    """

    key: str
    size: int
    etag: str
    modified_s: float = 0.0


@dataclass(frozen=True)
class Leftover:
    """What an interrupted write left behind: a temporary file or an unfinished multipart upload.

    Attributes:
        name: Key or path, as a person would look for it.
        kind: What it is.
        age_s: Seconds since it was begun.
    """

    name: str
    kind: str
    age_s: float


class ObjectStore(Protocol):
    """A folder or an S3 prefix. Objects appear whole or not at all.

    Safe for several threads; pickles as its address (Ray workers open their own connection). Every method
    raises ValueError for a key that could leave the root (``..``, absolute, NUL, backslash).
    """

    @property
    def url(self) -> str:
        """Root as a user writes it; never holds credentials."""
        ...

    def put_new(self, key: str, data: bytes) -> bool:
        """Create ``key``; exactly one of several racing writers wins.

        Returns:
            True if this call created it, False if it was there already.

        Raises:
            StoreError: The store cannot be reached, is full, or refuses.
        """
        ...

    def put_new_file(self, key: str, path: Path) -> bool:
        """`put_new` from a file, streamed (multipart on S3 above a threshold)."""
        ...

    def put_if_match(self, key: str, data: bytes, etag: str | None) -> bool:
        """Compare-and-swap: write if the object still has ``etag`` (None: if it does not exist).

        Returns:
            True if written, False if somebody else was faster.
        """
        ...

    def put(self, key: str, data: bytes) -> None:
        """Create or replace ``key`` (status records and reports only; never published files)."""
        ...

    def get(self, key: str, *, sha256: str | None = None, size: int | None = None) -> bytes:
        """Read an object, verified against ``sha256`` and ``size`` where given.

        Raises:
            KeyError: No such object.
            IntegrityError: Bytes differ from what was promised.
            StoreError: The store cannot be reached.
        """
        ...

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """Read an object and the etag to give to `put_if_match`.

        Raises:
            KeyError: No such object.
        """
        ...

    def get_file(self, key: str, path: Path, *, sha256: str | None = None, size: int | None = None) -> None:
        """Stream an object to ``path`` (temporary name, verified, renamed; resumed by range after a cut)."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Size and etag, or None if there is no such object."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects under ``prefix`` in key order."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; no error if it is not there (work files and ``gc`` only)."""
        ...

    def leftovers(self, older_than_s: float = 86_400, *, remove: bool = False) -> Sequence[Leftover]:
        """What killed writers left behind, oldest first; removed on request."""
        ...

    def probe(self) -> None:
        """Refuse a store that ignores conditional writes.

        Raises:
            StoreError: It does, or it cannot be written; names the server.
        """
        ...
