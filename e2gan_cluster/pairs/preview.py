"""A look at some edits before one commits to a run: no Ray, nothing stored.

Example:
    >>> Path("preview.png").write_bytes(preview_png(config, store, concepts, photos=4))
"""

from collections.abc import Sequence

import numpy as np

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import InputError
from e2gan_cluster.evaluate.grids import grid_png
from e2gan_cluster.pairs.photos import PhotoError, list_photos, read_photo, source_id
from e2gan_cluster.pairs.plan import Item, ShardSpec
from e2gan_cluster.pairs.rows import OK, decode_image
from e2gan_cluster.pairs.worker import ShardMaker
from e2gan_cluster.progress import Reporter
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.teacher.base import Teacher

TASK = "preview"


def preview_png(
    config: RunConfig,
    store: ObjectStore,
    concepts: Sequence[Concept],
    reporter: Reporter,
    photos: int = 4,
    teacher: Teacher | None = None,
) -> bytes:
    """A grid: one row per photo, the photo and then its edit by each concept. Dropped edits are blank.

    Args:
        config: Settings.
        store: Only named, not written.
        concepts: Columns.
        reporter: Gets filter verdicts.
        photos: Rows.
        teacher: A loaded teacher of this config; None loads it.

    Returns:
        PNG bytes.

    Raises:
        InputError: No photo can be used.
        TeacherError: The teacher can't be loaded or fails on everything.
    """
    maker = ShardMaker(config, {concept.name: concept for concept in concepts}, store, teacher)
    items = _first_items(config, maker, photos)
    columns = {"photo": np.stack([_square(maker, item) for item in items])}
    reporter.start(TASK, len(concepts), "concepts")
    for n, concept in enumerate(concepts):
        rows = maker.rows(ShardSpec("preview", "heldout", concept.name, "", tuple(items)), concept)
        blank = np.full_like(columns["photo"][0], 255)
        edits = [decode_image(r.edited_image) if r.status == OK and r.edited_image else blank for r in rows]
        columns[concept.name] = np.stack(edits)
        for row in rows:
            if row.status != OK:
                reporter.note(f"{concept.name}, photo {row.source_id}: {row.status}: {row.reason}")
        reporter.update(TASK, n + 1)
    reporter.finish(TASK)
    return grid_png(columns, max_rows=photos)


def _first_items(config: RunConfig, maker: ShardMaker, photos: int) -> list[Item]:
    items: list[Item] = []
    for ref in list_photos(config.photos):
        try:
            item = Item(source_id(read_photo(ref)), 0, ref.origin)
        except PhotoError:
            continue
        if maker.squares.get(item).image_HWC is not None:
            items.append(item)
        if len(items) == photos:
            break
    if not items:
        raise InputError(f"no photo in {config.photos.source} can be used", "check photos.source")
    return items


def _square(maker: ShardMaker, item: Item) -> np.ndarray:
    image_HWC = maker.squares.get(item).image_HWC
    assert image_HWC is not None
    return image_HWC
