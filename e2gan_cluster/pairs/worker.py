"""Makes one shard at a time: photos, edits, filters, Parquet, store. Runs in a Ray actor or in the caller's process.

Example:
    >>> maker = ShardMaker(config, {concept.name: concept}, store)
    >>> maker.make(spec)
    DoneMarker(shard='train-1f0c2ab94d77', rows=64, counts={'ok': 62, 'no-change': 2}, ...)
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from e2gan_cluster import busy
from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import StoreError, TeacherError
from e2gan_cluster.pairs.filters import PairFilter, Verdict
from e2gan_cluster.pairs.photos import PhotoError, PhotoRef, decode_photo, read_photo, source_id, square_crop
from e2gan_cluster.pairs.plan import Item, ShardSpec, row_seed
from e2gan_cluster.pairs.rows import OK, Row, encode_image, shard_bytes
from e2gan_cluster.pairs.shards import DoneMarker, write_shard
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.teacher.base import Teacher

_LOG = logging.getLogger(__name__)
_CACHE_BYTES = 128 << 20
_RETRY_WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
_T = TypeVar("_T")


def patiently(action: Callable[[], _T]) -> _T:
    """Runs a storage action again while storage fails, for about 15 s on top of the store's own retries.

    Raises:
        StoreError: It still fails.
    """
    for wait_s in _RETRY_WAITS_S:
        try:
            return action()
        except StoreError as error:
            _LOG.warning("storage failed, trying again in %.1f s: %s", wait_s, error.message)
            time.sleep(wait_s)
    return action()


def _read(origin: str) -> bytes:
    """A photo that was there a moment ago: if it can't be had now, that is no property of the photo."""
    try:
        return read_photo(PhotoRef(origin))
    except PhotoError as error:
        raise StoreError(f"{error.message}, though it was there before", "put it back, or run again") from error


@dataclass(frozen=True)
class Square:
    """One square of a photo, ready to edit.

    Attributes:
        image_HWC: uint8; None where the photo can't be used.
        encoded: The same in the shards' encoding.
        status: `ok` or `photo-<reason code>`.
    """

    image_HWC: np.ndarray | None
    encoded: bytes | None
    status: str = OK


class SquareCache:
    """Decoded squares by (photo, crop), kept because every concept edits the same ones."""

    def __init__(self, config: RunConfig, max_bytes: int = _CACHE_BYTES) -> None:
        self._config = config
        self._squares: OrderedDict[tuple[str, int], Square] = OrderedDict()
        side = config.pairs.resolution
        self._limit = max(2, max_bytes // (side * side * 5))
        self._last: tuple[str, np.ndarray | None, str] = ("", None, "")

    def get(self, item: Item) -> Square:
        """The square of a row.

        Raises:
            StoreError: The photo can't be fetched any more, or is another one now.
        """
        key = (item.source_id, item.crop)
        square = self._squares.get(key)
        if square is None:
            square = self._cut(item)
            self._squares[key] = square
            if len(self._squares) > self._limit:
                self._squares.popitem(last=False)
        self._squares.move_to_end(key)
        return square

    def _cut(self, item: Item) -> Square:
        if self._last[0] != item.source_id:
            self._last = (item.source_id, *self._decode(item))
        _, photo_HWC, status = self._last
        if photo_HWC is None:
            return Square(None, None, f"photo-{status}")
        image_HWC = square_crop(photo_HWC, self._config.pairs.resolution, item.crop, item.source_id)
        return Square(image_HWC, encode_image(image_HWC, self._config.pairs.image_format))

    def _decode(self, item: Item) -> tuple[np.ndarray | None, str]:
        data = patiently(lambda: _read(item.origin))
        if source_id(data) != item.source_id:
            raise StoreError(f"photo {item.origin} was changed during the run", "run the same command again")
        photo = decode_photo(data, self._config.photos.max_megapixels)
        return photo.image_HWC, photo.status


class ShardMaker:
    """A loaded teacher with filters and a cache of squares.

    Args:
        config: Settings.
        concepts: By name.
        store: Where shards go.
        teacher: None loads the one of the config.

    Raises:
        TeacherError: It can't be loaded.
    """

    def __init__(
        self, config: RunConfig, concepts: Mapping[str, Concept], store: ObjectStore, teacher: Teacher | None = None
    ) -> None:
        if teacher is None:
            from e2gan_cluster.teacher.load import load_teacher

            teacher = load_teacher(config.teacher)
        self.config = config
        self.concepts = dict(concepts)
        self.store = store
        self.teacher = teacher
        self.squares = SquareCache(config)
        self.filter = PairFilter(config.pairs.filters, config.teacher.device)

    def make(self, spec: ShardSpec) -> DoneMarker:
        """Makes and stores a shard.

        Args:
            spec: What belongs in it.

        Returns:
            The done-marker that was written.

        Raises:
            TeacherError: The teacher failed on every photo of it.
            StoreError: Storage failed for long.
        """
        concept = self.concepts[spec.concept]
        rows = self.rows(spec, concept)
        data = shard_bytes(rows, concept.name, concept.prompt, self.config.pairs.image_format)
        return patiently(lambda: write_shard(self.store, spec, rows, data))

    def rows(self, spec: ShardSpec, concept: Concept) -> list[Row]:
        """The rows of a shard, without storing them."""
        squares = [self.squares.get(item) for item in spec.items]
        seeds = [row_seed(self.config.seed, i.source_id, i.crop, concept.name) for i in spec.items]
        usable = [n for n, square in enumerate(squares) if square.image_HWC is not None]
        photos = [image for n in usable if (image := squares[n].image_HWC) is not None]
        with busy.working():
            edits, errors = self._edit(photos, [seeds[n] for n in usable], concept)
        if usable and len(errors) == len(usable):
            raise TeacherError(f"the teacher failed on all {len(usable)} photos of a shard: {errors[0]}")
        with busy.working():
            verdicts = self._judge(photos, edits, errors, concept)
        rows = []
        by_row = dict(zip(usable, range(len(usable)), strict=True))
        for n, (item, square) in enumerate(zip(spec.items, squares, strict=True)):
            row = Row(item.source_id, item.crop, seeds[n], square.status, input_image=square.encoded)
            if n in by_row:
                self._fill(row, edits[by_row[n]], verdicts[by_row[n]])
            else:
                row.reason = f"photo {item.origin} can't be used: {square.status}"
            rows.append(row)
        return rows

    def _edit(
        self, photos: Sequence[np.ndarray], seeds: Sequence[int], concept: Concept
    ) -> tuple[list[np.ndarray | None], dict[int, str]]:
        """Edits in batches; a batch that fails is repeated row by row, so that one photo can't take others along."""
        edits: list[np.ndarray | None] = []
        errors: dict[int, str] = {}
        step = self.config.teacher.batch_size
        for start in range(0, len(photos), step):
            batch, batch_seeds = photos[start : start + step], seeds[start : start + step]
            try:
                edits += self._call(batch, batch_seeds, concept)
                continue
            except Exception as error:  # noqa: BLE001 - a teacher may fail in any way; the row says how
                if len(batch) == 1:
                    errors[start] = f"{type(error).__name__}: {error}"
                    edits.append(None)
                    continue
            for n, (photo, seed) in enumerate(zip(batch, batch_seeds, strict=True)):
                try:
                    edits += self._call([photo], [seed], concept)
                except Exception as error:  # noqa: BLE001
                    errors[start + n] = f"{type(error).__name__}: {error}"
                    edits.append(None)
        return edits, errors

    def _call(self, photos: Sequence[np.ndarray], seeds: Sequence[int], concept: Concept) -> list[np.ndarray]:
        result = self.teacher.edit(
            np.stack(photos),
            [concept.prompt] * len(photos),
            seeds,
            overrides=concept.teacher,
            negative_prompt=concept.negative_prompt,
        )
        if len(result) != len(photos):
            raise TeacherError(f"the teacher returned {len(result)} edits for {len(photos)} photos")
        return list(result)

    def _judge(
        self,
        photos: Sequence[np.ndarray],
        edits: Sequence[np.ndarray | None],
        errors: Mapping[int, str],
        concept: Concept,
    ) -> list[Verdict]:
        verdicts = [
            Verdict("teacher-error", errors[n]) if n in errors else self.filter.check(photo, edits[n])
            for n, photo in enumerate(photos)
        ]
        kept = [n for n, verdict in enumerate(verdicts) if verdict.status == OK]
        kept_edits = [edit for n in kept if (edit := edits[n]) is not None]
        self.filter.check_together([photos[n] for n in kept], kept_edits, concept.prompt, [verdicts[n] for n in kept])
        return verdicts

    def _fill(self, row: Row, edit: np.ndarray | None, verdict: Verdict) -> None:
        row.status, row.reason, row.scores = verdict.status, verdict.reason, verdict.scores
        # Dropped edits that are pictures stay in the shard, so that a person can judge the threshold.
        if edit is not None and edit.dtype == np.uint8 and edit.ndim == 3 and edit.shape[2] == 3:
            row.edited_image = encode_image(edit, self.config.pairs.image_format)
