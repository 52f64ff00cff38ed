"""A tiny world for search tests: a random base and synthetic edits, through the real shard and base writers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.pairs.plan import Item, ShardSpec, Split, content_fingerprint
from e2gan_cluster.pairs.rows import Row, encode_image, shard_bytes
from e2gan_cluster.pairs.shards import write_index, write_shard
from e2gan_cluster.storage import open_store
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.train.base_store import publish_base
from e2gan_cluster.train.nets import build_discriminator, build_generator

TEXT_DIM = 384
Edit = Callable[[np.ndarray], np.ndarray]

EDITS: dict[str, tuple[str, Edit]] = {
    "invert": ("invert all colours", lambda x: 255 - x),
    "warm": ("make it warmer", lambda x: np.clip(x * [1.3, 1.0, 0.7], 0, 255)),
    "dark": ("make it darker", lambda x: x * 0.5),
    "grey": ("make it black and white", lambda x: np.repeat(x.mean(-1, keepdims=True), 3, -1)),
    "cold": ("make it colder", lambda x: np.clip(x * [0.7, 1.0, 1.3], 0, 255)),
}


@dataclass
class World:
    """Config, store, base and concepts of a test."""

    config: RunConfig
    store: ObjectStore
    base_id: str
    concepts: list[Concept]


def make_config(folder: Path, **search: Any) -> RunConfig:
    train = {"images": 32, "batch_size": 4, "lr": 0.02, "ema_images": 8, "loss": {"l1_weight": 10}}
    train |= search.pop("train", {})
    tiny = {
        "metric": "l1",
        "rank_multipliers": [1, 2],
        "data_sizes": [6, 12],
        "crucial_parts": ["ds", "upsample"],
        "subset": "random",
        "worker_cpus": 0.5,
        "train": train,
    }
    return RunConfig.model_validate(
        {
            "storage": str(folder / "store"),
            "tracking": f"sqlite:///{folder / 'mlflow.db'}",
            "pairs": {"resolution": 32, "pairs_per_concept": 64, "rows_per_shard": 16},
            "nets": {"width": 8, "heads": 2, "disc_width": 4, "text_tokens": 8},
            "search": tiny | search,
        }
    )


def make_world(folder: Path, names: tuple[str, ...] = ("invert", "warm"), **search: Any) -> World:
    """Pairs of the named edits (16 for training, 6 held out) and a random base."""
    config = make_config(folder, **search)
    store = open_store(config.storage)
    concepts = [Concept(name, EDITS[name][0]) for name in names]
    for concept in concepts:
        add_pairs(store, config, concept)
    return World(config, store, add_base(store, config), concepts)


def add_base(store: ObjectStore, config: RunConfig, seed: int = 0) -> str:
    torch.manual_seed(seed)
    generator = build_generator(config.nets, TEXT_DIM).eval()
    for p in generator.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.01)
    discriminator = build_discriminator(config.nets, TEXT_DIM)
    return publish_base(store, generator, discriminator, config.nets, TEXT_DIM, {}, {})


def add_pairs(store: ObjectStore, config: RunConfig, concept: Concept, counts: tuple[int, int] = (16, 6)) -> None:
    markers = []
    splits: tuple[Split, Split] = ("train", "heldout")
    for split, count, first in zip(splits, counts, (0, 1000), strict=True):
        ids = [f"{first + i:016x}" for i in range(count)]
        items = tuple(Item(source_id, 0, "synthetic") for source_id in ids)
        spec = ShardSpec(f"{split}-0", split, concept.name, content_fingerprint(config, concept), items)
        rows = [_row(config, concept.name, first + i, source_id) for i, source_id in enumerate(ids)]
        data = shard_bytes(rows, concept.name, concept.prompt, config.pairs.image_format)
        markers.append(write_shard(store, spec, rows, data))
    write_index(store, config, concept, markers)


def _row(config: RunConfig, name: str, number: int, source_id: str) -> Row:
    photo = synthetic_photo(number, config.pairs.resolution)
    edit = EDITS[name][1](photo.astype(np.float64)).round().astype(np.uint8)
    return Row(source_id, 0, number, input_image=encode_image(photo, "png"), edited_image=encode_image(edit, "png"))


def synthetic_photo(number: int, side: int) -> np.ndarray:
    """A smooth random picture."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in rng.uniform(0, 3, (3, 3))]
    return (127.5 + 90 * np.stack(waves, -1) + rng.normal(0, 6, (side, side, 3))).clip(0, 255).astype(np.uint8)
