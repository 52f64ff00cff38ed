"""Streamed downloads that go on where a cut connection (or a killed process) left them."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from e2gan_cluster.errors import IntegrityError, StoreError
from e2gan_cluster.storage import files
from e2gan_cluster.storage.checks import check_file, sha256_of
from e2gan_cluster.storage.retry import Retry

CHUNK_BYTES = 64 * 1024
"""Small, so that a trickling server is noticed between two chunks."""


class Cut(Exception):
    """The transfer broke off in a way that is worth another attempt."""


class Changed(Exception):
    """The object is not the one whose beginning we hold: start again."""


@dataclass(frozen=True)
class Body:
    """One answer of the server.

    Attributes:
        chunks: The bytes from the asked offset on; raises `Cut`.
        total: Size of the whole object, bytes.
        etag: Its version.
        offset: Where `chunks` really begins (0 if the server ignored the range).
    """

    chunks: Iterator[bytes]
    total: int
    etag: str
    offset: int


Opener = Callable[[int, str | None], AbstractContextManager[Body]]
"""Opens the object at an offset, insisting on an etag; raises `Cut`, `Changed`, KeyError or StoreError."""


def fetch(open_at: Opener, sink: BinaryIO, retry: Retry, offset: int = 0, size: int | None = None) -> str:
    """Copy an object into ``sink`` (positioned anywhere), whatever the connection does.

    Args:
        open_at: How to open the object.
        sink: A file that can seek and truncate; its first ``offset`` bytes are kept.
        retry: Deadline of the whole transfer.
        offset: Bytes already there from an earlier process.
        size: Promised size of the whole object; another one is refused before it is read.

    Returns:
        The object's etag.

    Raises:
        KeyError: No such object.
        IntegrityError: It has another size than promised.
        StoreError: It did not come through before the deadline.
    """
    etag: str | None = None
    while True:
        try:
            with open_at(offset, etag) as body:
                if size is not None and body.total != size:
                    raise IntegrityError(f"{retry.what}: {body.total} bytes there, expected {size}", "publish it again")
                etag, offset = body.etag, body.offset
                sink.seek(offset)
                sink.truncate()
                for chunk in body.chunks:
                    sink.write(chunk)
                    offset += len(chunk)
                    retry.progress(len(chunk))
                if offset == body.total:
                    return etag
                raise Cut(f"connection closed at {offset} of {body.total} bytes")
        except Changed as error:
            offset, etag = 0, None
            retry.wait(str(error))
        except Cut as error:
            retry.wait(str(error))


def fetch_to_file(what: str, open_at: Opener, path: Path, retry: Retry, sha256: str | None, size: int | None) -> None:
    """Download to a temporary name, verify, rename; a promised digest lets a later process resume the rest.

    Raises:
        KeyError: No such object.
        IntegrityError: The bytes are not the promised ones.
        StoreError: Network or disk gave up, or another process downloads the same file.
    """
    files.make_folder(path.parent)
    # Named by digest: a beginning is only ever continued by the same content.
    token = sha256_of(f"{sha256} {path.name}".encode())[:32]
    part = path.with_name(f"{files.TEMP_PREFIX}{token}.part") if sha256 else files.temp_path(path)
    keep_part = False
    try:
        with part.open("a+b") as lock:
            if not files.try_lock(lock):
                keep_part = True
                raise StoreError(f"{path} is being downloaded by another process", "wait for it, then try again")
            have = lock.seek(0, os.SEEK_END)
            _fill(what, open_at, part, retry, have, sha256, size)
            files.place(part, path, sync=False)  # can be fetched again: not worth a sync
    except OSError as error:
        raise files.file_error(error, "write", path, size) from error
    except (StoreError, KeyboardInterrupt):
        keep_part = keep_part or sha256 is not None
        raise
    finally:
        if not keep_part:
            part.unlink(missing_ok=True)


def _fill(
    what: str, open_at: Opener, part: Path, retry: Retry, have: int, sha256: str | None, size: int | None
) -> None:
    """Complete ``part``, of which ``have`` bytes are there, and verify it."""
    with part.open("r+b") as sink:
        if have == 0 or have != size:
            fetch(open_at, sink, retry, have, size)
    try:
        check_file(what, part, sha256, size)
    except IntegrityError:
        if have == 0:
            raise
        # Perhaps only the beginning left by an earlier process is bad: a fresh copy decides.
        os.truncate(part, 0)
        _fill(what, open_at, part, retry, 0, sha256, size)
