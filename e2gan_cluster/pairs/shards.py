"""Shard files: one Parquet file and its done-marker, and reading a concept's pairs back.

Example:
    >>> pairs = load_pairs(store, concept, "train", config)
    >>> pairs.inputs_NHWC.shape, pairs.edits_NHWC.dtype
    ((1000, 128, 128, 3), dtype('uint8'))

The image columns follow the Hugging Face convention (`struct<bytes, path>`), so
``datasets.load_dataset("parquet", data_files="runs/demo/pairs/oil-painting/train-*.parquet")`` opens them as pictures.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import InputError, IntegrityError
from e2gan_cluster.pairs.plan import ShardSpec, Split, content_fingerprint, digest, pairs_fingerprint
from e2gan_cluster.pairs.rows import OK, SCHEMA, Row, decode_image
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore

__all__ = ["PairSet", "Row", "load_pairs", "pairs_digest", "pairs_fingerprint"]

_READERS = 8


@dataclass(frozen=True)
class DoneMarker:
    """What is promised of a finished shard.

    Attributes:
        shard: Name.
        split: Train or held-out.
        fingerprint: `content_fingerprint` of the concept.
        rows: Row count.
        size: Bytes of the Parquet file.
        sha256: Of the Parquet file.
        counts: Rows by status.
        note: Anything a person should know of (a smaller batch after memory ran out).
    """

    shard: str
    split: str
    fingerprint: str
    rows: int
    size: int
    sha256: str
    counts: dict[str, int]
    note: str = ""

    def to_bytes(self) -> bytes:
        """JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode()

    @staticmethod
    def from_bytes(data: bytes) -> "DoneMarker":
        """Reads `to_bytes`.

        Raises:
            ValueError: Not a done-marker.
        """
        record = json.loads(data)
        names = {f.name for f in fields(DoneMarker)}
        if not isinstance(record, dict) or set(record) != names:
            raise ValueError("not a done-marker")
        return DoneMarker(**record)


def write_shard(store: ObjectStore, spec: ShardSpec, rows: Sequence[Row], data: bytes, note: str = "") -> DoneMarker:
    """Stores a shard, then its done-marker. A leftover file of a killed run under the same key is replaced.

    Raises:
        StoreError: Storage fails.
    """
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.status] = counts.get(row.status, 0) + 1
    marker = DoneMarker(
        shard=spec.name,
        split=spec.split,
        fingerprint=spec.fingerprint,
        rows=len(rows),
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        counts=dict(sorted(counts.items())),
        note=note,
    )
    key = keys.pair_shard(spec.concept, spec.name)
    if not store.put_new(key, data) and store.get(key) != data:
        store.delete(key)
        store.put_new(key, data)
    done = keys.pair_shard_done(spec.concept, spec.name)
    if not store.put_new(done, marker.to_bytes()) and store.get(done) != marker.to_bytes():
        store.delete(done)
        store.put_new(done, marker.to_bytes())
    return marker


def discard_shard(store: ObjectStore, concept: str, shard: str) -> None:
    """Removes a damaged shard, marker first, so that it counts as not made."""
    store.delete(keys.pair_shard_done(concept, shard))
    store.delete(keys.pair_shard(concept, shard))


def read_marker(store: ObjectStore, concept: str, shard: str) -> DoneMarker | None:
    """The done-marker, or None where there is none that can be read."""
    try:
        return DoneMarker.from_bytes(store.get(keys.pair_shard_done(concept, shard)))
    except (KeyError, ValueError, TypeError):
        return None


def read_shard(store: ObjectStore, concept: str, marker: DoneMarker) -> pa.Table:
    """The verified table of a finished shard: sha256, page checksums, schema and row count.

    Raises:
        IntegrityError: The file is missing or differs from its marker; names it.
    """
    key = keys.pair_shard(concept, marker.shard)
    fix = "run `e2gan pairs --verify` with the same config: it finds damaged shards and makes them again"
    try:
        data = store.get(key, sha256=marker.sha256, size=marker.size)
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except KeyError as error:
        raise IntegrityError(f"shard {key} is missing from {store.url}", fix) from error
    except (pa.ArrowInvalid, OSError, IntegrityError) as error:
        raise IntegrityError(f"shard {key} in {store.url} is damaged: {error}", fix) from error
    if table.num_rows != marker.rows:
        raise IntegrityError(f"shard {key} has {table.num_rows} rows, its marker says {marker.rows}", fix)
    if not table.schema.equals(SCHEMA, check_metadata=False):
        raise IntegrityError(f"shard {key} has other columns than this version writes", fix)
    return table


@dataclass
class PairSet:
    """The kept pairs of one concept and split, in the order (source_id, crop).

    Attributes:
        concept: Name.
        prompt: Edit prompt.
        source_ids: Content hashes of the photos.
        inputs_NHWC: Photos, uint8.
        edits_NHWC: The teacher's edits, uint8.
        seeds: Seeds of the noise.
    """

    concept: str
    prompt: str
    source_ids: list[str]
    inputs_NHWC: np.ndarray
    edits_NHWC: np.ndarray
    seeds: list[int]

    def __len__(self) -> int:
        return len(self.source_ids)

    def take(self, rows: Sequence[int]) -> "PairSet":
        """The pairs at these positions."""
        index = list(rows)
        return PairSet(
            self.concept,
            self.prompt,
            [self.source_ids[i] for i in index],
            self.inputs_NHWC[index],
            self.edits_NHWC[index],
            [self.seeds[i] for i in index],
        )


def write_index(
    store: ObjectStore, config: RunConfig, concept: Concept, markers: Sequence[DoneMarker], imported: bool = False
) -> None:
    """Records which shards make up the concept under this setting; written when all of them are finished."""
    record = {"prompt": concept.prompt, "imported": imported, "shards": [asdict(marker) for marker in markers]}
    key = keys.pairs_index(concept.name, pairs_fingerprint(config, concept)[:16])
    store.put(key, json.dumps(record, sort_keys=True, indent=1).encode())


@dataclass(frozen=True)
class PairsIndex:
    """The finished shards of a concept under one setting.

    Attributes:
        markers: One per shard.
        imported: They were not made by the teacher; generation leaves them alone.
    """

    markers: list[DoneMarker]
    imported: bool


def find_index(store: ObjectStore, config: RunConfig, concept: Concept) -> PairsIndex | None:
    """The index of the concept under this setting, or None if there is none.

    Raises:
        IntegrityError: It can't be read.
    """
    key = keys.pairs_index(concept.name, pairs_fingerprint(config, concept)[:16])
    try:
        record = json.loads(store.get(key))
        return PairsIndex([DoneMarker(**marker) for marker in record["shards"]], bool(record.get("imported")))
    except KeyError as error:
        if store.head(key) is None:
            return None
        raise IntegrityError(f"{key} in {store.url} lacks {error}", "delete it and run e2gan pairs again") from error
    except (ValueError, TypeError) as error:
        raise IntegrityError(f"{key} in {store.url} can't be read: {error}", "delete it, run e2gan pairs") from error


def read_index(store: ObjectStore, config: RunConfig, concept: Concept) -> list[DoneMarker]:
    """The finished shards of the concept under this setting.

    Raises:
        InputError: There are none: pairs were never made, or with another setting.
        IntegrityError: The index can't be read.
    """
    index = find_index(store, config, concept)
    if index is None:
        raise InputError(
            f"no finished pairs of concept {concept.name!r} for this config in {store.url}",
            f"make them: e2gan pairs --config FILE --concept {concept.name}",
        )
    return index.markers


def pairs_digest(store: ObjectStore, config: RunConfig, concept: Concept) -> str:
    """Hash over the concept's finished shards: changes when photos were added or taken away.

    Raises:
        InputError: There are no finished pairs.
    """
    return digest(sorted(marker.sha256 for marker in read_index(store, config, concept)))


def load_pairs(store: ObjectStore, concept: Concept, split: Split, config: RunConfig) -> PairSet:
    """Reads the kept pairs of a concept; every shard is verified.

    Args:
        store: Where `generate_pairs` put them.
        concept: The concept.
        split: Train or held-out.
        config: The config the pairs were made with.

    Returns:
        Rows with status `ok`.

    Raises:
        InputError: There are no finished pairs of this setting.
        IntegrityError: A shard is damaged; names it.
    """
    fingerprint = content_fingerprint(config, concept)
    markers = [m for m in read_index(store, config, concept) if m.split == split]
    stale = [marker.shard for marker in markers if marker.fingerprint != fingerprint]
    if stale:
        raise IntegrityError(f"shard {stale[0]} of {concept.name!r} has another fingerprint than its index says")
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(lambda marker: read_shard(store, concept.name, marker), markers))
    size = config.pairs.resolution
    rows = [row for table in tables for row in _kept_rows(table)]
    rows.sort(key=lambda row: (row["source_id"], row["crop"]))
    inputs_NHWC = np.zeros((len(rows), size, size, 3), np.uint8)
    edits_NHWC = np.zeros_like(inputs_NHWC)
    for i, row in enumerate(rows):
        inputs_NHWC[i] = decode_image(row["input_image"]["bytes"])
        edits_NHWC[i] = decode_image(row["edited_image"]["bytes"])
    ids = [row["source_id"] for row in rows]
    return PairSet(concept.name, concept.prompt, ids, inputs_NHWC, edits_NHWC, [row["seed"] for row in rows])


def _kept_rows(table: pa.Table) -> list[dict[str, Any]]:
    columns = ["input_image", "edited_image", "source_id", "crop", "seed", "status"]
    return [row for row in table.select(columns).to_pylist() if row["status"] == OK]


def count_statuses(markers: Sequence[DoneMarker]) -> Mapping[str, int]:
    """Rows by status over several shards."""
    counts: dict[str, int] = {}
    for marker in markers:
        for status, count in marker.counts.items():
            counts[status] = counts.get(status, 0) + count
    return dict(sorted(counts.items()))
