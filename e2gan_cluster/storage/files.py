"""Files that appear whole or not at all: temporary name, fsync, then link or rename. POSIX only.

Example:
    write_new(Path("out/a.bin"), b"...")   # False if it was there already
"""

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from e2gan_cluster.errors import StoreError

TEMP_PREFIX = ".tmp-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV}


def file_error(error: OSError, action: str, path: Path | str, num_bytes: int | None = None) -> StoreError:
    """An `OSError` in words: path, bytes and what to do about it."""
    amount = f" ({num_bytes} bytes)" if num_bytes is not None else ""
    message = f"cannot {action} {path}{amount}: {error.strerror or error}"
    if error.errno in _FULL:
        return StoreError(message, "free disk space, then run the same command again: finished work is kept")
    if error.errno in _REFUSED:
        return StoreError(message, "make the folder writable for this user, or choose another one")
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return StoreError(message, "a file is where a folder should be, or the reverse: choose another path")
    return StoreError(message, "check the path and the disk")


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        StoreError: It cannot be created; says why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise file_error(error, "create folder", path) from error


def sync_folder(path: Path) -> None:
    """Make renames and links in ``path`` survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync folders
            raise
    finally:
        os.close(fd)


def temp_path(target: Path) -> Path:
    """A fresh name beside ``target`` that listings leave out."""
    return target.with_name(f"{TEMP_PREFIX}{os.getpid()}-{secrets.token_hex(6)}")


@contextmanager
def temp_file(target: Path, *, sync: bool = True) -> Iterator[tuple[Path, BinaryIO]]:
    """A temporary file beside ``target``; flushed (and synced) at the end of the block, removed if the block fails."""
    make_folder(target.parent)
    path = temp_path(target)
    try:
        with path.open("xb") as f:
            yield path, f
            f.flush()
            if sync:
                os.fsync(f.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def place_new(temp: Path, target: Path) -> bool:
    """Give ``temp`` the name ``target`` unless that exists; exactly one of several racing callers wins."""
    try:
        os.link(temp, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # No hard links on this file system: all writers come through here, so a lock is enough.
        with locked(target.parent / f"{TEMP_PREFIX}link.lock"):
            if os.path.lexists(target):
                return False
            temp.rename(target)
    finally:
        temp.unlink(missing_ok=True)
    sync_folder(target.parent)
    return True


def place(temp: Path, target: Path, *, sync: bool = True) -> None:
    """Give ``temp`` the name ``target``, replacing what was there."""
    try:
        temp.replace(target)
    finally:
        temp.unlink(missing_ok=True)
    if sync:
        sync_folder(target.parent)


def write_new(target: Path, data: bytes) -> bool:
    """Create ``target`` with ``data``; False if it was there already.

    Raises:
        StoreError: The disk is full or refuses.
    """
    try:
        with temp_file(target) as (temp, f):
            f.write(data)
        return place_new(temp, target)
    except OSError as error:
        raise file_error(error, "write", target, len(data)) from error


def write(target: Path, data: bytes, *, sync: bool = True) -> None:
    """Create or replace ``target`` with ``data`` in one step; ``sync`` makes it survive a power cut.

    Raises:
        StoreError: The disk is full or refuses.
    """
    try:
        with temp_file(target, sync=sync) as (temp, f):
            f.write(data)
        place(temp, target, sync=sync)
    except OSError as error:
        raise file_error(error, "write", target, len(data)) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a lock file, between threads and processes; freed when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def try_lock(f: BinaryIO) -> bool:
    """Take the lock of an open file without waiting; it is freed when the file is closed."""
    try:
        fcntl.flock(f.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
