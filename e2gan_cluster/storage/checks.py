"""Bytes against what was promised about them."""

import hashlib
from pathlib import Path

from e2gan_cluster.errors import IntegrityError
from e2gan_cluster.storage.files import file_error

_REFETCH = "fetch it again; if it differs again, the stored copy is damaged: restore it or publish a new version"


def sha256_of(data: bytes) -> str:
    """Hex digest of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file, read in pieces.

    Raises:
        StoreError: It cannot be read.
    """
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as error:
        raise file_error(error, "read", path) from error


def check_bytes(what: str, data: bytes, sha256: str | None, size: int | None) -> None:
    """Compare ``data`` with its promised length and digest; None means: not promised.

    Raises:
        IntegrityError: They differ; names ``what`` and both values.
    """
    _check_size(what, len(data), size)
    if sha256 is not None and (found := sha256_of(data)) != sha256:
        raise IntegrityError(f"{what}: sha256 is {found}, expected {sha256}", _REFETCH)


def check_file(what: str, path: Path, sha256: str | None, size: int | None) -> None:
    """Compare a file with its promised length and digest.

    Raises:
        IntegrityError: They differ; names ``what`` and both values.
    """
    _check_size(what, path.stat().st_size, size)
    if sha256 is not None and (found := sha256_of_file(path)) != sha256:
        raise IntegrityError(f"{what}: sha256 is {found}, expected {sha256}", _REFETCH)


def _check_size(what: str, found: int, size: int | None) -> None:
    if size is not None and found != size:
        raise IntegrityError(f"{what}: {found} bytes, expected {size}", _REFETCH)
