"""Where photos come from, which split they belong to, and how squares are cut from them.

A source is ``bundled``, a folder, a glob, an S3 prefix, a Parquet file, or a CSV or JSON-lines list.

Example:
    refs = list_photos(PhotosConfig(source="photos/"))
    photo = load_photo(refs[0], max_megapixels=64)   # never raises: photo.status says what was wrong
    square_crop(photo.image_HWC, 128, 0, photo.source_id)
"""

import csv
import functools
import hashlib
import json
import stat
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from e2gan_cluster.config import PhotosConfig
from e2gan_cluster.errors import InputError, UserError
from e2gan_cluster.pairs.decode import MAX_PHOTO_BYTES, STATUS_HELP, DecodedPhoto, decode_photo
from e2gan_cluster.redact import redact

__all__ = [
    "STATUS_HELP",
    "DecodedPhoto",
    "LoadedPhoto",
    "PhotoRef",
    "decode_photo",
    "list_photos",
    "load_photo",
    "read_photo",
    "source_id",
    "split_of",
    "square_crop",
]

_SIDECARS = {
    ".txt",
    ".md",
    ".tsv",
    ".csv",
    ".json",
    ".jsonl",
    ".yaml",
    ".yml",
    ".toml",
    ".html",
    ".py",
    ".db",
    ".ini",
    ".parquet",
}
_SMALLEST_CROP = 0.6
_ROW_MARK = "#row="
_TIMEOUT_S = 60.0
# Several threads read one file; each row group is to be decoded once.
_parquet_lock = threading.Lock()


@dataclass(frozen=True)
class PhotoRef:
    """Where one photo is.

    Attributes:
        origin: Path, URL, ``s3://`` address, or ``file.parquet#row=N``.
    """

    origin: str


class PhotoError(InputError):
    """A photo whose bytes cannot be had.

    Args:
        status: Key of `STATUS_HELP`.
        origin: Which photo.
        detail: What the reader said.
    """

    def __init__(self, status: str, origin: str, detail: str = "") -> None:
        self.status, self.origin, self.detail = status, origin, detail
        super().__init__(redact(f"{origin}: {STATUS_HELP[status]}{f' ({detail})' if detail else ''}"))

    def __reduce__(self) -> tuple[type["PhotoError"], tuple[str, str, str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Keep the parts when Ray pickles the error."""
        return (type(self), (self.status, self.origin, self.detail))


@dataclass(frozen=True)
class LoadedPhoto:
    """A photo read and decoded.

    Attributes:
        source_id: First 16 hex of the sha256 of its bytes; of its origin if it has none.
        status: ``ok`` or a key of `STATUS_HELP`.
        image_HWC: RGB, uint8; None unless ``ok``.
    """

    source_id: str
    status: str
    image_HWC: np.ndarray | None = None


def list_photos(cfg: PhotosConfig) -> list[PhotoRef]:
    """All photos of the source in a fixed order (by origin; with ``limit``: the first by content hash).

    Raises:
        InputError: the source does not exist, has no photos, or its list is malformed (with file and line).
    """
    refs = [PhotoRef(origin) for origin in dict.fromkeys(_origins(cfg.source))]
    if not refs:
        raise InputError(
            f"photos.source = {redact(cfg.source)}: no photos there", "check the path; sub-folders are searched too"
        )
    if cfg.limit is not None and len(refs) > cfg.limit:
        refs = sorted(refs, key=_hash_order)[: cfg.limit]
    return refs


def read_photo(ref: PhotoRef) -> bytes:
    """Bytes of a photo.

    Raises:
        PhotoError: (an `InputError`) missing, unreadable, or larger than 128 MiB; its ``status`` is the reason code.
    """
    origin = ref.origin
    try:
        if _ROW_MARK in origin:
            path, _, row = origin.rpartition(_ROW_MARK)
            return _parquet_bytes(path, int(row))
        if origin.startswith("s3://"):
            return _s3_bytes(origin)
        if origin.startswith(("http://", "https://")):
            return _http_bytes(origin)
        data = _file_bytes(origin)
    except (FileNotFoundError, KeyError):
        raise PhotoError("missing", origin) from None
    except (OSError, ValueError) as bad:
        raise PhotoError("unreadable", origin, getattr(bad, "strerror", None) or str(bad)) from None
    if len(data) > MAX_PHOTO_BYTES:
        raise PhotoError("too-many-bytes", origin)
    return data


def load_photo(ref: PhotoRef, max_megapixels: float) -> LoadedPhoto:
    """Read and decode a photo; whatever is wrong with it becomes its status.

    Args:
        ref: Which photo.
        max_megapixels: See `decode_photo`.
    """
    try:
        data = read_photo(ref)
    except PhotoError as bad:
        return LoadedPhoto(source_id(ref.origin.encode()), bad.status)
    decoded = decode_photo(data, max_megapixels)
    return LoadedPhoto(source_id(data), decoded.status, decoded.image_HWC)


def source_id(data: bytes) -> str:
    """First 16 hex digits of the sha256 of a photo's bytes: its identity wherever it lies."""
    return hashlib.sha256(data).hexdigest()[:16]


def split_of(source_id: str, heldout_fraction: float) -> Literal["train", "heldout"]:
    """Which split a photo belongs to: by its content alone, so it never changes sides.

    By the last digits of the hash: the first ones order the photos, and `photos.limit` must not cut off one split.

    Args:
        source_id: See `source_id`.
        heldout_fraction: Expected share of held-out photos.
    """
    tail = source_id[-8:]
    return "heldout" if int(tail, 16) / 16 ** len(tail) < heldout_fraction else "train"


def square_crop(image_HWC: np.ndarray, resolution: int, crop: int, source_id: str) -> np.ndarray:
    """Cut a square and scale it.

    Args:
        image_HWC: RGB, uint8.
        resolution: Side of the result, pixels.
        crop: 0 = the centre square; others = a random square of 0.6 to 1 of the shorter side, by (source_id, crop).
        source_id: See `source_id`.

    Returns:
        uint8 [resolution, resolution, 3].
    """
    height, width = image_HWC.shape[:2]
    short = min(height, width)
    if crop == 0:
        side, top, left = short, (height - short) // 2, (width - short) // 2
    else:
        rng = np.random.default_rng([int(source_id, 16), crop])
        side = max(1, round(short * rng.uniform(_SMALLEST_CROP, 1)))
        top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
    square = Image.fromarray(image_HWC[top : top + side, left : left + side])
    return np.asarray(square.resize((resolution, resolution), Image.Resampling.LANCZOS), dtype=np.uint8).copy()


def bundled_folder() -> Path:
    """Folder of the photos that come with the package."""
    return Path(str(resources.files("e2gan_cluster"))) / "assets" / "photos"


def _hash_order(ref: PhotoRef) -> tuple[str, str]:
    try:
        return source_id(read_photo(ref)), ref.origin
    except PhotoError:
        return source_id(ref.origin.encode()), ref.origin


def _origins(source: str) -> list[str]:
    if source == "bundled":
        return _folder(bundled_folder())
    kind: Callable[[str], list[str]] | None = {".parquet": _parquet, ".csv": _csv_list, ".jsonl": _jsonl_list}.get(
        Path(source).suffix.lower()
    )
    if kind is not None and not source.startswith("s3://") and not any(c in source for c in "*?["):
        if not Path(source).is_file():
            raise InputError(
                f"photos.source = {source}: no such file",
                "give a folder, glob, s3://, .parquet, .csv, .jsonl or `bundled`",
            )
        return kind(source)
    if source.startswith("s3://"):
        return [
            f"{source.rstrip('/')}/{info.key}" for info in _store(source.rstrip("/")).list() if _may_be_photo(info.key)
        ]
    if Path(source).is_dir():
        return _folder(Path(source))
    if Path(source).is_file():
        return [source]
    if any(c in source for c in "*?["):
        return _glob(source)
    raise InputError(
        f"photos.source = {redact(source)}: no such folder",
        "give a folder, glob, s3://, .parquet, .csv, .jsonl or `bundled`",
    )


def _glob(pattern: str) -> list[str]:
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
    root = Path(*parts[:first])
    return sorted(str(p) for p in root.glob(str(Path(*parts[first:]))) if p.is_file() and _may_be_photo(str(p)))


def _folder(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.rglob("*") if p.is_file() and _may_be_photo(str(p.relative_to(folder))))


def _may_be_photo(path: str) -> bool:
    """All but hidden files and what obviously lies beside photos: a broken photo is to be counted, not overlooked."""
    parts = Path(path).parts
    return (
        not any(part.startswith(".") and part not in {".", ".."} for part in parts)
        and Path(path).suffix.lower() not in _SIDECARS
    )


def _csv_list(source: str) -> list[str]:
    rows = _lines(source)
    reader = csv.DictReader(line for _, line in rows)
    column = next((c for c in ("path", "url") if c in (reader.fieldnames or ())), None)
    if column is None:
        raise InputError(
            f"{source}:1: no column `path` or `url`", "the first line names the columns, e.g. `path,title`"
        )
    try:
        return [_entry(row.get(column), source, reader.line_num) for row in reader]
    except csv.Error as bad:
        raise InputError(f"{source}:{reader.line_num}: {bad}") from None


def _jsonl_list(source: str) -> list[str]:
    found = []
    for number, line in _lines(source):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as bad:
            raise InputError(f"{source}:{number}: not JSON: {bad}") from None
        if not isinstance(row, dict):
            raise InputError(f"{source}:{number}: expected an object with `path` or `url`")
        found.append(_entry(row.get("path", row.get("url")), source, number))
    return found


def _lines(source: str) -> Iterator[tuple[int, str]]:
    with Path(source).open(encoding="utf-8-sig", newline="") as file:
        try:
            yield from enumerate(file, 1)
        except UnicodeDecodeError:
            raise InputError(f"{source}: not UTF-8 text", "save the file as UTF-8") from None


def _entry(value: object, source: str, line: int) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise InputError(f"{source}:{line}: empty or malformed path")
    if value.startswith(("http://", "https://", "s3://")):
        return value
    if "://" in value:
        raise InputError(f"{source}:{line}: only http, https and s3 addresses are read, not {value[:60]!a}")
    return str(Path(source).parent / value)


def _parquet(source: str) -> list[str]:
    _parquet_column(source)
    return [f"{source}{_ROW_MARK}{row}" for row in range(_parquet_file(source).metadata.num_rows)]


@functools.lru_cache(maxsize=4)
def _parquet_file(source: str) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(source, page_checksum_verification=True)


def _parquet_column(source: str) -> str:
    import pyarrow as pa

    try:
        schema = _parquet_file(source).schema_arrow
    except (OSError, pa.ArrowException) as bad:
        raise InputError(f"{source}: not a readable Parquet file: {bad}") from None
    for name in ("image", "input_image", "bytes"):
        if name in schema.names:
            return name
    raise InputError(f"{source}: no column `image`", "a column `image` of {bytes, path} or of bytes is needed")


@functools.lru_cache(maxsize=2)
def _parquet_group(source: str, group: int) -> list[Any]:
    return _parquet_file(source).read_row_group(group, columns=[_parquet_column(source)]).column(0).to_pylist()


def _parquet_bytes(source: str, row: int) -> bytes:
    import pyarrow as pa

    metadata = _parquet_file(source).metadata
    first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row < first + rows:
            try:
                with _parquet_lock:
                    value = _parquet_group(source, group)[row - first]
            except pa.ArrowException as bad:
                raise ValueError(str(bad)) from None
            return _cell_bytes(value, Path(source).parent)
        first += rows
    raise KeyError(row)


def _cell_bytes(value: Any, folder: Path) -> bytes:
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        if data is None and path:
            return read_photo(PhotoRef(_entry(path, str(folder / "image"), 0)))
        value = data
    if not isinstance(value, bytes):
        raise ValueError("the image cell holds no bytes")
    return value


@functools.lru_cache(maxsize=8)
def _store(url: str) -> Any:
    from e2gan_cluster.storage import open_store

    return open_store(url)


def _s3_bytes(origin: str) -> bytes:
    root, _, key = origin.rpartition("/")
    store = _store(root)
    info = store.head(key)
    if info is None:
        raise KeyError(key)
    if info.size > MAX_PHOTO_BYTES:
        raise PhotoError("too-many-bytes", origin)
    try:
        return store.get(key)
    except UserError as bad:
        raise PhotoError("unreadable", origin, bad.message) from None


def _file_bytes(origin: str) -> bytes:
    state = Path(origin).stat()
    if not stat.S_ISREG(state.st_mode):
        # Opening a pipe would wait for ever.
        raise PhotoError("unreadable", origin, "not a regular file")
    if state.st_size > MAX_PHOTO_BYTES:
        raise PhotoError("too-many-bytes", origin)
    with Path(origin).open("rb") as file:
        return file.read(MAX_PHOTO_BYTES + 1)


def _http_bytes(origin: str) -> bytes:
    request = urllib.request.Request(origin, headers={"User-Agent": "e2gan"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return answer.read(MAX_PHOTO_BYTES + 1)
    except urllib.error.HTTPError as bad:
        if bad.code in {404, 410}:
            raise KeyError(origin) from None
        raise OSError(f"HTTP {bad.code}") from None
