"""Bring published adapters into an app's build: only what changed, verified, all or nothing.

Files are staged in the target folder, checked, and swapped in once everything has arrived; the lock is written last.
A pull that is killed at any moment leaves the old files or, between two swaps, a folder that the next pull completes.

Example:
    result = pull(open_store("s3://effects/demo"), PullRequest(Path("assets/effects"), ("oil-painting",)))
"""

import ctypes
import os
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from e2gan_cluster.errors import IntegrityError, StoreError
from e2gan_cluster.progress import Reporter, SilentReporter
from e2gan_cluster.storage import files
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.storage.bundle import walk_files
from e2gan_cluster.storage.checks import sha256_of_file
from e2gan_cluster.storage.folder import STAGING, adapter_folder, base_folder, check_content
from e2gan_cluster.storage.lock import LOCK, Lock, read_lock
from e2gan_cluster.storage.manifest import MANIFEST, FileEntry
from e2gan_cluster.storage.parallel import parallel_map
from e2gan_cluster.storage.pull_plan import BASE_ITEM, Item, PullPlan, PullRequest, make_plan

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_OLD = "old-"
_SLASH = "@"  # no concept has it in its name


@dataclass(frozen=True)
class PullResult:
    """What a pull did.

    Attributes:
        lock: What the folder holds now.
        changed: Concepts (and `BASE_ITEM`) that were brought or mended.
        unchanged: Those that were there already.
        removed: What was taken out (pull by lock, or in a format without base).
        skipped: Adapters of other bases that were left out.
        files: Files downloaded.
        num_bytes: Bytes downloaded.
        seconds: Time it took.
    """

    lock: Lock
    changed: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]
    skipped: tuple[str, ...]
    files: int
    num_bytes: int
    seconds: float


def pull(store: ObjectStore, request: PullRequest, reporter: Reporter | None = None) -> PullResult:
    """Fill a folder with adapters; see `PullRequest`.

    Args:
        store: Registry; reading rights are enough.
        request: What, where, in which formats.
        reporter: Told of progress.

    Returns:
        What was done. The folder then passes `verify_folder`.

    Raises:
        InputError: Unknown names or formats.
        IntegrityError: Something published is damaged or unusable; the folder stays as it was.
        BaseMismatchError: Adapters of another base than the folder's.
        StoreError: Network or disk gave up; the folder stays as it was, and the same pull goes on later.
    """
    begin_s = time.monotonic()
    reporter = reporter or SilentReporter()
    target = request.target
    for folder in (target / "adapters", target / "base"):
        if folder.is_symlink():
            raise IntegrityError(
                f"{folder} is a symbolic link", "replace it by a plain folder, or choose another --out"
            )
    _recover(target)
    current = _current(target, request)
    plan = make_plan(store, request, current)
    there = list(parallel_map(Item.is_there, plan.items, min(request.workers, 2 * (os.cpu_count() or 1))))
    missing = [item for item, good in zip(plan.items, there, strict=True) if not good]
    removed = _removed(current, plan.lock)
    if not missing and not removed and current == plan.lock:
        return _result(plan, missing, removed, (0, 0), begin_s)
    files.make_folder(target / STAGING)
    with (target / STAGING / "lock").open("ab") as guard:
        if not files.try_lock(guard):
            raise StoreError(f"another pull is filling {target}", "wait for it, then try again")
        done = _stage(store, request, missing, reporter)
        try:
            for item in missing:
                _swap(_staged(target, item), item.folder, _aside(target, item.folder))
            for name in removed:
                folder = base_folder(target) if name == BASE_ITEM else adapter_folder(target, name)
                _take_out(folder, target / STAGING / f"removed-{_flat(target, folder)}")
            files.write(target / STAGING / LOCK, plan.lock.to_json())
            (target / STAGING / LOCK).replace(target / LOCK)
            shutil.rmtree(target / STAGING, ignore_errors=True)
        except OSError as error:
            raise files.file_error(error, "write into", target) from error
    return _result(plan, missing, removed, done, begin_s)


def _result(
    plan: PullPlan, missing: list[Item], removed: tuple[str, ...], done: tuple[int, int], begin_s: float
) -> PullResult:
    changed = tuple(item.name for item in missing)
    unchanged = tuple(item.name for item in plan.items if item.name not in changed)
    return PullResult(plan.lock, changed, unchanged, removed, plan.skipped, *done, time.monotonic() - begin_s)


def _current(target: Path, request: PullRequest) -> Lock | None:
    """The folder's lock; a damaged one counts as none if the request says all that is needed."""
    try:
        return read_lock(target / LOCK)
    except IntegrityError:
        if request.lock is not None or request.concepts:
            return None
        raise


def _removed(current: Lock | None, wanted: Lock) -> tuple[str, ...]:
    """What the folder holds by its old lock and the new one does not know."""
    if current is None:
        return ()
    concepts = sorted(set(current.adapters) - set(wanted.adapters))
    base = [BASE_ITEM] if current.base_manifest_sha256 and not wanted.base_manifest_sha256 else []
    return (*concepts, *base)


def _staged(target: Path, item: Item) -> Path:
    return target / STAGING / f"{_flat(target, item.folder)}.{item.manifest.digest[:16]}"


def _aside(target: Path, folder: Path) -> Path:
    return target / STAGING / f"{_OLD}{_flat(target, folder)}"


def _flat(target: Path, folder: Path) -> str:
    return folder.relative_to(target).as_posix().replace("/", _SLASH)


def _stage(store: ObjectStore, request: PullRequest, items: list[Item], reporter: Reporter) -> tuple[int, int]:
    """Bring all files of all items into the staging folder and check them; what is there from a killed pull stays."""
    jobs = [(item, entry) for item in items for entry in item.manifest.files if entry.path in item.files]
    counter = _Counter(reporter, len(jobs))

    def bring(job: tuple[Item, FileEntry]) -> None:
        item, entry = job
        path = _staged(request.target, item) / entry.path
        if not _has(path, entry) and not _reuse(item.folder / entry.path, path, entry):
            key = item.prefix + entry.path
            try:
                store.get_file(key, path, sha256=entry.sha256, size=entry.size)
            except KeyError:
                raise IntegrityError(f"{store.url}/{key} is missing", "publish the adapter again") from None
            counter.downloaded(entry.size)
        counter.step()

    def check(item: Item) -> None:
        folder = _staged(request.target, item)
        for path in walk_files(folder):  # of a killed pull in another format
            if path.relative_to(folder).as_posix() not in item.files:
                path.unlink()
        check_content(folder, item.manifest, item.files)
        files.write(folder / MANIFEST, item.manifest.to_json(), sync=False)

    for _ in parallel_map(bring, jobs, request.workers):
        pass
    for _ in parallel_map(check, items, request.workers):
        pass
    reporter.finish("pull", f"{counter.files} files, {counter.num_bytes / 1e6:.1f} MB")
    return counter.files, counter.num_bytes


class _Counter:
    """Counts from many threads."""

    def __init__(self, reporter: Reporter, total: int) -> None:
        self._reporter, self._lock, self._done = reporter, threading.Lock(), 0
        self.files = self.num_bytes = 0
        reporter.start("pull", total, "files")

    def downloaded(self, num_bytes: int) -> None:
        with self._lock:
            self.files += 1
            self.num_bytes += num_bytes

    def step(self) -> None:
        with self._lock:
            self._done += 1
            self._reporter.update("pull", self._done, MB=round(self.num_bytes / 1e6, 1))


def _has(path: Path, entry: FileEntry) -> bool:
    plain = path.is_file() and not path.is_symlink()
    return plain and path.stat().st_size == entry.size and sha256_of_file(path) == entry.sha256


def _reuse(old: Path, path: Path, entry: FileEntry) -> bool:
    """Copy a file that did not change between two versions."""
    if not _has(old, entry):
        return False
    files.make_folder(path.parent)
    try:
        shutil.copyfile(old, path)
    except OSError as error:
        raise files.file_error(error, "write", path, entry.size) from error
    return True


def _swap(staged: Path, folder: Path, aside: Path) -> None:
    """Put a staged folder in place; the old one goes to staging."""
    files.make_folder(folder.parent)
    if not os.path.lexists(folder):
        staged.rename(folder)
    elif not _exchange(staged, folder):
        _take_out(folder, aside)
        staged.rename(folder)


def _take_out(folder: Path, aside: Path) -> None:
    if aside.exists():
        shutil.rmtree(aside)
    if os.path.lexists(folder):
        folder.rename(aside)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step (Linux renameat2), where kernel and file system can."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _recover(target: Path) -> None:
    """Give back a folder that a pull, killed between two renames, had set aside."""
    if not (target / STAGING).is_dir():
        return
    for aside in (target / STAGING).glob(f"{_OLD}*"):
        folder = target / aside.name.removeprefix(_OLD).replace(_SLASH, "/")
        if not os.path.lexists(folder):
            aside.rename(folder)
