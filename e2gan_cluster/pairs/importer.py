"""Takes pairs that exist already as a concept's pairs, instead of a teacher's.

Sources: a folder with the sub-folders `input` and `edited` holding files of the same names, or Parquet files with the
columns of diffusers' instruct-pix2pix example (`input_image`, `edited_image`, `edit_prompt`), as data sets of the
Hugging Face hub are stored.

Example:
    >>> import_pairs(config, store, concept, Path("my_pairs"), make_reporter())
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import InputError
from e2gan_cluster.pairs.decode import decode_photo
from e2gan_cluster.pairs.filters import check_pixels
from e2gan_cluster.pairs.ledger import ConceptLedger, Ledger, PairsResult, status_record
from e2gan_cluster.pairs.photos import source_id, split_of, square_crop
from e2gan_cluster.pairs.plan import SPLITS, Item, ShardSpec, Split, content_fingerprint, digest, group_items
from e2gan_cluster.pairs.rows import Row, encode_image, shard_bytes
from e2gan_cluster.pairs.shards import write_index, write_shard
from e2gan_cluster.progress import Reporter
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore

TASK = "import"
INPUT_FOLDERS = ("input", "input_image", "before", "A")
EDITED_FOLDERS = ("edited", "edited_image", "after", "B")
INPUT_COLUMNS = ("input_image", "original_image")


def import_pairs(
    config: RunConfig,
    store: ObjectStore,
    concept: Concept,
    source: Path,
    reporter: Reporter,
    only_prompt: str | None = None,
) -> PairsResult:
    """Stores existing pairs as the finished pairs of a concept under this config.

    Both pictures are cut to their centre square and scaled to `pairs.resolution`; the pixel filters run. Generation
    under the same config leaves the concept alone from then on.

    Args:
        config: Settings.
        store: Where shards go.
        concept: Whose pairs they are.
        source: Folder, or Parquet file, or folder of Parquet files.
        reporter: Gets progress.
        only_prompt: Of Parquet files, take only rows with this `edit_prompt`.

    Returns:
        Counts, and a failure if too many were dropped.

    Raises:
        InputError: The source holds no pairs.
    """
    rows: dict[Split, dict[str, Row]] = {split: {} for split in SPLITS}
    reporter.start(TASK, 0, "pairs")
    count = 0
    for before, after in _pairs_of(source, only_prompt):
        row = _row(before, after, config)
        rows[split_of(row.source_id, config.photos.heldout_fraction)].setdefault(row.source_id, row)
        count += 1
        reporter.update(TASK, count)
    if not count:
        raise InputError(
            f"no pairs in {source}",
            "give a folder with input/ and edited/, or Parquet files with input_image and edited_image (docs/pairs.md)",
        )
    result = _store(config, store, concept, rows)
    reporter.finish(TASK, f"{result.train_ok} training and {result.heldout_ok} held-out pairs of {concept.name}")
    return result


def _row(before: bytes, after: bytes, config: RunConfig) -> Row:
    limit, side = config.photos.max_megapixels, config.pairs.resolution
    row = Row(source_id(before), 0, 0)
    photo, edit = decode_photo(before, limit), decode_photo(after, limit)
    for status, picture in ((f"photo-{photo.status}", photo), (f"edit-{edit.status}", edit)):
        if picture.image_HWC is None:
            row.status, row.reason = status, "this picture can't be used"
            return row
    assert photo.image_HWC is not None
    assert edit.image_HWC is not None
    squares = [square_crop(image, side, 0, row.source_id) for image in (photo.image_HWC, edit.image_HWC)]
    verdict = check_pixels(squares[0], squares[1], config.pairs.filters)
    row.status, row.reason, row.scores = verdict.status, verdict.reason, verdict.scores
    row.input_image, row.edited_image = (encode_image(s, config.pairs.image_format) for s in squares)
    return row


def _store(config: RunConfig, store: ObjectStore, concept: Concept, rows: dict[Split, dict[str, Row]]) -> PairsResult:
    """Shards, index, status."""
    fingerprint = content_fingerprint(config, concept)
    ledger = ConceptLedger(concept, {split: [] for split in SPLITS})
    for split in SPLITS:
        items = [Item(i, 0, "imported") for i in sorted(rows[split])]
        for group in group_items(items, config.pairs.rows_per_shard):
            chosen = [rows[split][item.source_id] for item in group]
            data = shard_bytes(chosen, concept.name, concept.prompt, config.pairs.image_format)
            name = digest({"imported": fingerprint, "split": split, "rows": [r.source_id for r in chosen]})[:12]
            spec = ShardSpec(f"{split}-{name}", split, concept.name, fingerprint, tuple(group))
            ledger.planned[split].append(spec)
            ledger.markers[spec.name] = write_shard(store, spec, chosen, data, note="imported")
    result = Ledger(config, [ledger]).result(concept.name, SPLITS)
    if result.failure is None:
        markers = [marker for split in SPLITS for marker in ledger.split_markers(split)]
        write_index(store, config, concept, markers, imported=True)
    store.put(keys.pairs_status(concept.name), status_record(ledger, result, config))
    return result


def _pairs_of(source: Path, only_prompt: str | None) -> Iterator[tuple[bytes, bytes]]:
    files = [source] if source.is_file() else sorted(source.rglob("*.parquet"))
    if files:
        for file in files:
            yield from _parquet_pairs(file, only_prompt)
        return
    before = next((source / name for name in INPUT_FOLDERS if (source / name).is_dir()), None)
    after = next((source / name for name in EDITED_FOLDERS if (source / name).is_dir()), None)
    if before is None or after is None:
        return
    edits = {path.stem: path for path in after.iterdir() if path.is_file()}
    for path in sorted(before.iterdir()):
        if path.is_file() and path.stem in edits:
            yield path.read_bytes(), edits[path.stem].read_bytes()


def _parquet_pairs(file: Path, only_prompt: str | None) -> Iterator[tuple[bytes, bytes]]:
    try:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file}: not a readable Parquet file: {error}") from None
    names = parquet.schema_arrow.names
    before = next((name for name in INPUT_COLUMNS if name in names), None)
    if before is None or "edited_image" not in names:
        raise InputError(f"{file} has columns {', '.join(names)}", "input_image and edited_image are needed")
    wanted = [before, "edited_image", *(name for name in ("edit_prompt", "status") if name in names)]
    for batch in parquet.iter_batches(batch_size=64, columns=wanted):
        for row in batch.to_pylist():
            other = only_prompt is not None and row.get("edit_prompt") != only_prompt
            if other or row.get("status", "ok") != "ok":
                continue
            yield _bytes(row[before]), _bytes(row["edited_image"])


def _bytes(cell: Any) -> bytes:
    """A Hugging Face image cell; one that only names a file counts as empty, and its row is dropped."""
    return (cell.get("bytes") if isinstance(cell, dict) else cell) or b""
