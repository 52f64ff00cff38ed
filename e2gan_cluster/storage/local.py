"""A folder as an object store, with S3's guarantees between threads and processes of machines that share it."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from e2gan_cluster.errors import StoreError
from e2gan_cluster.storage import files, keys
from e2gan_cluster.storage.base import Leftover, ObjectInfo
from e2gan_cluster.storage.checks import check_bytes, check_file, sha256_of, sha256_of_file
from e2gan_cluster.storage.probing import probe_store

_LOCKS = ".locks"
_LOCK_STRIPES = 64
_COPY_BYTES = 1 << 20


class LocalStore:
    """Objects are files below a root folder.

    Creation links a finished temporary file to its name (fails if taken), replacement renames under a file
    lock, so a reader never sees a half-written object and a killed writer leaves only a temporary file.

    Args:
        root: The folder; created by the first write.
    """

    def __init__(self, root: str | Path) -> None:
        self._shown = str(root)
        self._root = Path(root).expanduser().absolute()

    def __reduce__(self) -> tuple[type["LocalStore"], tuple[str]]:
        return (type(self), (str(self._root),))

    def __repr__(self) -> str:
        return f"LocalStore({self._shown!r})"

    @property
    def url(self) -> str:
        """The root as the user wrote it."""
        return self._shown

    @property
    def root(self) -> Path:
        """The root as an absolute path."""
        return self._root

    def _path(self, key: str) -> Path:
        path = self._root / keys.check_key(key)
        if any(part.startswith((files.TEMP_PREFIX, _LOCKS)) for part in path.relative_to(self._root).parts):
            raise ValueError(f"key {key!r} uses a name reserved for temporary files")
        real, root = os.path.realpath(path), os.path.realpath(self._root)
        if real != root and not real.startswith(root.rstrip("/") + "/"):
            raise StoreError(
                f"{path} leads through a symbolic link out of the storage root {self._shown}",
                "replace the link by the files themselves",
            )
        return path

    def _lock(self, key: str) -> AbstractContextManager[None]:
        stripe = int(sha256_of(key.encode())[:8], 16) % _LOCK_STRIPES
        files.make_folder(self._root / _LOCKS)
        return files.locked(self._root / _LOCKS / f"{stripe:02d}")

    def put_new(self, key: str, data: bytes) -> bool:
        """See `ObjectStore.put_new`."""
        path = self._path(key)
        return not path.exists() and files.write_new(path, data)

    def put_new_file(self, key: str, path: Path) -> bool:
        """See `ObjectStore.put_new_file`."""
        target = self._path(key)
        if target.exists():
            return False
        try:
            with path.open("rb") as source, files.temp_file(target) as (temp, f):
                shutil.copyfileobj(source, f, _COPY_BYTES)
            return files.place_new(temp, target)
        except OSError as error:
            size = path.stat().st_size if path.is_file() else None
            raise files.file_error(error, f"copy {path} to", target, size) from error

    def put_if_match(self, key: str, data: bytes, etag: str | None) -> bool:
        """See `ObjectStore.put_if_match`; the etag is the content's sha256."""
        if etag is None:
            return self.put_new(key, data)
        path = self._path(key)
        with self._lock(key):
            if not path.is_file() or sha256_of_file(path) != etag:
                return False
            files.write(path, data)
        return True

    def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore.put`."""
        path = self._path(key)
        with self._lock(key):
            files.write(path, data)

    def _open(self, key: str) -> BinaryIO:
        path = self._path(key)
        try:
            return path.open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise KeyError(key) from None
        except OSError as error:
            raise files.file_error(error, "read", path) from error

    def get(self, key: str, *, sha256: str | None = None, size: int | None = None) -> bytes:
        """See `ObjectStore.get`."""
        try:
            with self._open(key) as f:
                data = f.read()
        except OSError as error:
            raise files.file_error(error, "read", self._root / key) from error
        check_bytes(f"{self._shown}/{key}", data, sha256, size)
        return data

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """See `ObjectStore.get_with_etag`."""
        data = self.get(key)
        return data, sha256_of(data)

    def get_file(self, key: str, path: Path, *, sha256: str | None = None, size: int | None = None) -> None:
        """See `ObjectStore.get_file`."""
        try:
            # A copy can be made again: not worth a sync.
            with self._open(key) as source, files.temp_file(path, sync=False) as (temp, f):
                shutil.copyfileobj(source, f, _COPY_BYTES)
                f.flush()
                check_file(f"{self._shown}/{key}", temp, sha256, size)
            files.place(temp, path, sync=False)
        except OSError as error:
            raise files.file_error(error, "write", path, size) from error

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.head`."""
        try:
            with self._open(key) as f:
                stat = os.fstat(f.fileno())
            return ObjectInfo(key, stat.st_size, sha256_of_file(self._root / key), stat.st_mtime)
        except KeyError:
            return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`; etags are left empty, as they would need every file's content."""
        keys.check_prefix(prefix)
        if not self._root.exists():
            return
        found: list[ObjectInfo] = []
        start = self._root / prefix.rpartition("/")[0]
        for folder, subfolders, names in os.walk(start, followlinks=False):
            subfolders[:] = [name for name in subfolders if name != _LOCKS]
            for name in names:
                path = Path(folder) / name
                key = path.relative_to(self._root).as_posix()
                if name.startswith(files.TEMP_PREFIX) or not key.startswith(prefix):
                    continue
                try:
                    stat = path.stat()
                except OSError:
                    continue  # removed since the folder was read, or a dangling link
                found.append(ObjectInfo(key, stat.st_size, "", stat.st_mtime))
        yield from sorted(found, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        path = self._path(key)
        try:
            with self._lock(key):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise files.file_error(error, "delete", path) from error

    def leftovers(self, older_than_s: float = 86_400, *, remove: bool = False) -> Sequence[Leftover]:
        """See `ObjectStore.leftovers`: temporary files of killed writers."""
        found: list[Leftover] = []
        for path in self._root.rglob(f"{files.TEMP_PREFIX}*"):
            age_s = time.time() - path.lstat().st_mtime
            if age_s >= older_than_s and not path.name.endswith(".lock"):
                found.append(Leftover(path.relative_to(self._root).as_posix(), "temporary file", age_s))
                if remove:
                    path.unlink(missing_ok=True)
        return sorted(found, key=lambda leftover: -leftover.age_s)

    def probe(self) -> None:
        """See `ObjectStore.probe`."""
        probe_store(self, f"folder {self._shown}")
