"""Which rows exist, in which shard each one sits, and what decides a shard's name.

A shard is named by the sha256 of everything that decides its content, so finished work is recognised by name alone.
Rows are grouped by the leading bits of the photos' content hashes, split until a group fits in a shard: adding a photo
changes the one group it falls into and leaves every other shard as it is.

Example:
    >>> items = plan_items(photo_ids, config)["train"]
    >>> [spec.name for spec in plan_shards(items, "train", concept, config)]
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.pairs.photos import split_of
from e2gan_cluster.teacher.fingerprint import teacher_fingerprint

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
FORMAT = 1


@dataclass(frozen=True, order=True)
class Item:
    """One square to edit.

    Attributes:
        source_id: Content hash of the photo, 16 hex digits.
        crop: 0 is the centre square, others are seeded random squares.
        origin: Where the photo's bytes are read from.
    """

    source_id: str
    crop: int
    origin: str


@dataclass(frozen=True)
class ShardSpec:
    """All that a worker needs to make one shard.

    Attributes:
        name: `<split>-<12 hex digits>`.
        split: Train or held-out.
        concept: Name of the concept.
        fingerprint: `content_fingerprint` of the concept.
        items: The rows, in order.
    """

    name: str
    split: Split
    concept: str
    fingerprint: str
    items: tuple[Item, ...]

    def to_json(self) -> str:
        """One line; read back by `from_json`."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "ShardSpec":
        """Reads `to_json`."""
        record = json.loads(text)
        return ShardSpec(**{**record, "items": tuple(Item(**item) for item in record["items"])})


def digest(value: Any) -> str:
    """Sha256 hex over canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def content_fingerprint(config: RunConfig, concept: Concept) -> str:
    """What, beside the photos, decides the bytes of the concept's shards; 64 hex digits."""
    pairs = config.pairs
    return digest(
        {
            "format": FORMAT,
            "concept": concept.name,
            "prompt": concept.prompt,
            "negative_prompt": concept.negative_prompt,
            "overrides": dict(concept.teacher),
            "teacher": teacher_fingerprint(config.teacher),
            "resolution": pairs.resolution,
            "image_format": pairs.image_format,
            "filters": pairs.filters.model_dump(mode="json"),
            "max_megapixels": config.photos.max_megapixels,
            "seed": config.seed,
        }
    )


def pairs_fingerprint(config: RunConfig, concept: Concept) -> str:
    """The concept's pair setting: `content_fingerprint` and which photos are taken; 64 hex digits.

    Photos that are added to the same source don't change it; `pairs_digest` of the shards module does.
    """
    photos = config.photos
    return digest(
        {
            "content": content_fingerprint(config, concept),
            "source": photos.source,
            "limit": photos.limit,
            "heldout_fraction": photos.heldout_fraction,
            "crops_per_photo": photos.crops_per_photo,
            "pairs_per_concept": config.pairs.pairs_per_concept,
        }
    )


def row_seed(seed: int, source_id: str, crop: int, concept: str) -> int:
    """Seed of one row's noise, 0 to 2**63 - 1; no other row's existence changes it."""
    data = f"{seed}|{source_id}|{crop}|{concept}".encode()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 1


def max_heldout(config: RunConfig) -> int:
    """Held-out rows of a concept at most: the same proportion of `pairs_per_concept` as of the photos."""
    share = config.photos.heldout_fraction
    return math.ceil(config.pairs.pairs_per_concept * share / (1 - share))


def plan_items(origins: Mapping[str, str], config: RunConfig) -> dict[Split, list[Item]]:
    """The rows of every concept.

    Args:
        origins: Photo content hash -> where it is read from.
        config: Limits on photos, crops and pairs.

    Returns:
        Rows of both splits in the order (source_id, crop).
    """
    ids: dict[Split, list[str]] = {"train": [], "heldout": []}
    for source_id in sorted(origins)[: config.photos.limit]:
        ids[split_of(source_id, config.photos.heldout_fraction)].append(source_id)
    # First crops of all photos come before second crops of any.
    train = [(crop, i) for crop in range(config.photos.crops_per_photo) for i in ids["train"]]
    train = train[: config.pairs.pairs_per_concept]
    heldout = [(0, i) for i in ids["heldout"][: max_heldout(config)]]
    return {
        "train": sorted(Item(i, crop, origins[i]) for crop, i in train),
        "heldout": sorted(Item(i, crop, origins[i]) for crop, i in heldout),
    }


def group_items(items: Sequence[Item], rows: int) -> Iterator[list[Item]]:
    """Cuts sorted items into groups of at most ``rows`` that depend on hash prefixes, not on positions.

    A group is split by the next bit of `source_id` while it is too large, so one more photo changes one group.
    """
    yield from _split(list(items), rows, 0)


def _split(items: list[Item], rows: int, bit: int) -> Iterator[list[Item]]:
    if not items:
        return
    if len(items) <= rows:
        yield items
    elif items[0].source_id == items[-1].source_id or bit >= 64:
        for start in range(0, len(items), rows):
            yield items[start : start + rows]
    else:
        low = [item for item in items if not _bit(item.source_id, bit)]
        yield from _split(low, rows, bit + 1)
        yield from _split(items[len(low) :], rows, bit + 1)


def _bit(source_id: str, bit: int) -> int:
    return int(source_id[bit // 4], 16) >> (3 - bit % 4) & 1


def plan_shards(items: Sequence[Item], split: Split, concept: Concept, config: RunConfig) -> list[ShardSpec]:
    """The shards that hold ``items`` of one concept.

    Args:
        items: Rows in the order (source_id, crop).
        split: Train or held-out.
        concept: The edit.
        config: Settings.

    Returns:
        Shards in the order of their rows.
    """
    fingerprint = content_fingerprint(config, concept)
    specs = []
    for group in group_items(items, config.pairs.rows_per_shard):
        rows = [[item.source_id, item.crop] for item in group]
        name = digest({"content": fingerprint, "split": split, "rows": rows})[:12]
        specs.append(ShardSpec(f"{split}-{name}", split, concept.name, fingerprint, tuple(group)))
    return specs
