"""Finds the photos and names each by its content.

Example:
    >>> scan_photos(PhotosConfig(source="photos")).origins
    {'03af5c1be2d94470': 'photos/harbour.jpg', ...}
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from e2gan_cluster.config import PhotosConfig
from e2gan_cluster.errors import InputError
from e2gan_cluster.pairs.photos import PhotoError, PhotoRef, list_photos, load_photo, read_photo, source_id

_THREADS = 8
_WINDOW = 64
# Photos that are decoded before anything starts; the others are judged when their turn comes.
_SAMPLE = 200
# (path, size, mtime) -> id, so that one process hashes a local file once.
_known: dict[tuple[str, int, int], str] = {}


@dataclass(frozen=True)
class PhotoScan:
    """What a photo source holds.

    Attributes:
        origins: Content hash -> where it is read from; copies of a photo count once.
        listed: Files listed.
        unreadable: Files whose bytes can't be fetched.
    """

    origins: dict[str, str]
    listed: int
    unreadable: int


def scan_photos(cfg: PhotosConfig) -> PhotoScan:
    """Lists the photos and hashes them; at no time more than a few are in memory.

    Args:
        cfg: Source and limits.

    Raises:
        InputError: There are none, the list is malformed, or more than `max_bad_fraction` of a sample can't be used.
    """
    refs = list_photos(cfg)
    origins: dict[str, str] = {}
    unreadable = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(refs), _WINDOW):
            window = refs[start : start + _WINDOW]
            for ref, photo_id in zip(window, pool.map(_identify, window), strict=True):
                if photo_id is None:
                    unreadable += 1
                elif photo_id not in origins or ref.origin < origins[photo_id]:
                    origins[photo_id] = ref.origin
    _refuse_bad(cfg, origins, unreadable)
    return PhotoScan(origins, len(refs), unreadable)


def _identify(ref: PhotoRef) -> str | None:
    """Content hash, or None where the bytes can't be fetched."""
    path = Path(ref.origin)
    try:
        stat = path.stat() if "://" not in ref.origin and path.is_file() else None
        key = (ref.origin, stat.st_size, stat.st_mtime_ns) if stat else None
        if key is not None and key in _known:
            return _known[key]
        photo_id = source_id(read_photo(ref))
    except (OSError, PhotoError):
        return None
    if key is not None:
        _known[key] = photo_id
    return photo_id


def _refuse_bad(cfg: PhotosConfig, origins: dict[str, str], unreadable: int) -> None:
    """Stops before any teacher work where most photos are useless."""
    ids = sorted(origins)
    step = max(1, len(ids) // _SAMPLE)
    sample = [PhotoRef(origins[photo_id]) for photo_id in ids[::step]]
    statuses: Counter[str] = Counter()
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(sample), _WINDOW):
            window = sample[start : start + _WINDOW]
            statuses.update(pool.map(lambda ref: load_photo(ref, cfg.max_megapixels).status, window))
    if unreadable:
        statuses["unreadable"] = unreadable
    total = statuses.total()
    bad = total - statuses["ok"]
    if not origins or bad > cfg.max_bad_fraction * total:
        counts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
        raise InputError(
            f"{bad} of {total} photos looked at in {cfg.source} can't be used: {counts}",
            f"replace them, or raise photos.max_bad_fraction (now {cfg.max_bad_fraction})",
        )
