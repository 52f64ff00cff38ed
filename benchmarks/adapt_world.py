"""A base and new concepts to adapt to, for the benchmarks of the search.

Either those of a run (``--config``: its pairs and base must be finished), or a small world of reference edits, which
need no teacher: pairs of all edits, and a base trained on the edits that are not asked for. Built once per folder.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.reference_edits import EDITS, concepts, reference_pairs
from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.config_io import load_config
from e2gan_cluster.pairs.plan import Item, ShardSpec, Split, content_fingerprint
from e2gan_cluster.pairs.rows import Row, encode_image, shard_bytes
from e2gan_cluster.pairs.shards import DoneMarker, PairSet, write_index, write_shard
from e2gan_cluster.progress import make_reporter
from e2gan_cluster.search.jobs import serve_here
from e2gan_cluster.search.layers import ensure_layers
from e2gan_cluster.search.lookup import open_setting
from e2gan_cluster.search.settings import SearchSetting
from e2gan_cluster.search.worker import WarmWorker
from e2gan_cluster.storage import open_store
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.text.encoder import PromptEncoder
from e2gan_cluster.track.mlflow_tracker import NullTracker
from e2gan_cluster.train.base_driver import base_done
from e2gan_cluster.train.base_store import publish_base
from e2gan_cluster.train.data import pair_data
from e2gan_cluster.train.loop import create_state, train
from e2gan_cluster.train.nets import build_discriminator, build_generator

NEW = ("sunset", "charcoal", "oil", "snow", "forest", "neon", "watercolour", "storm")
SMALL = (
    "pairs.resolution=64", "nets.width=24", "nets.disc_width=16", "base.train.images=6000", "base.train.lr=1e-3",
    "base.train.loss.l1_weight=10", "base.train.loss.lpips_weight=2", "base.train.loss.gan_weight=0",
    "search.train.images=1200", "search.data_sizes=[25, 50, 100]", "search.probe_images=240",
    "pairs.pairs_per_concept=400", "search.crucial_parts=[downsample, ds, transformer, us, upsample]",
)  # fmt: skip

QUICK_IMAGES = 400


@dataclass
class AdaptWorld:
    """What a benchmark works on."""

    config: RunConfig
    store: ObjectStore
    setting: SearchSetting
    concepts: list[Concept]

    def warm(self) -> WarmWorker:
        """A warm worker in this process."""
        return WarmWorker(self.setting)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of every benchmark of the search."""
    parser.add_argument("--config", type=Path, help="a run whose pairs and base are finished; empty = reference edits")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="where the world and results are kept")
    parser.add_argument("--concepts", type=int, default=8, help="new concepts")
    parser.add_argument("--photos", default="bundled", help="bundled or a folder; for reference edits")
    parser.add_argument("--quick", action="store_true", help=f"4 concepts, {QUICK_IMAGES} training images")


def open_world(options: argparse.Namespace) -> AdaptWorld:
    """The world that the command line asks for, with its layer table."""
    count = min(4, options.concepts) if options.quick else options.concepts
    if options.config:
        from e2gan_cluster.batch import open_batch

        config = load_config(options.config, options.set)
        if options.quick and config.search.train.images > QUICK_IMAGES:
            config = load_config(options.config, [*options.set, f"search.train.images={QUICK_IMAGES}"])
        batch = open_batch(config)
        config, store, chosen = batch.config, batch.store, batch.new[:count]
        base_id = base_done(config, store, batch.base)
        assert base_id is not None, "this run has no trained base: run `e2gan base` first"
    else:
        quick = ["base.train.images=1500", f"search.train.images={QUICK_IMAGES}"] if options.quick else []
        config = load_config(None, [*SMALL, *quick, f"storage={options.folder}", *options.set])
        store = open_store(config.storage)
        chosen = [concept for concept in concepts() if concept.name in NEW[:count]]
        base_id = _reference_world(config, store, [c.name for c in chosen], options.photos)
    ensure_layers(config, store, base_id, chosen, make_reporter("plain"), NullTracker(), serve_here)
    return AdaptWorld(config, store, open_setting(config, store, base_id), chosen)


def _reference_world(config: RunConfig, store: ObjectStore, new: Sequence[str], photos: str) -> str:
    """Pairs of all edits and a base on those that are not new."""
    key = "bench/base.json"
    try:
        return json.loads(store.get(key))["base_id"]
    except KeyError:
        pass
    sets = reference_pairs(list(EDITS), config.pairs.resolution, 2, photos)
    for concept in concepts():
        _write_pairs(store, config, concept, sets[concept.name])
    old = [name for name in EDITS if name not in NEW]
    encoder = PromptEncoder(max_tokens=config.nets.text_tokens)
    torch.manual_seed(config.seed)
    generator = build_generator(config.nets, encoder.dim)
    discriminator = build_discriminator(config.nets, encoder.dim)
    warm = None
    if config.base.train.loss.lpips_weight:
        from e2gan_cluster.evaluate.lpips import Lpips

        warm = Lpips("alex")
    state = create_state(generator, discriminator, config.base.train)
    data = pair_data([sets[name][0] for name in old], encoder)
    result = train(state, data, config.base.train, seed=config.seed, perceptual=warm)
    print(f"base trained on {len(old)} edits, {result.images} images, {result.seconds:.0f} s", flush=True)
    with state.averaged():
        base_id = publish_base(store, generator, discriminator, config.nets, encoder.dim, {"concepts": old}, {})
    store.put(key, json.dumps({"base_id": base_id}).encode())
    return base_id


def _write_pairs(store: ObjectStore, config: RunConfig, concept: Concept, sets: tuple[PairSet, PairSet]) -> None:
    splits: tuple[Split, Split] = ("train", "heldout")
    markers: list[DoneMarker] = []
    for split, pairs in zip(splits, sets, strict=True):
        rows = [
            Row(source, i, 0, input_image=encode_image(photo, "png"), edited_image=encode_image(edit, "png"))
            for i, (source, photo, edit) in enumerate(
                zip(pairs.source_ids, pairs.inputs_NHWC, pairs.edits_NHWC, strict=True)
            )
        ]
        items = tuple(Item(row.source_id, row.crop, "reference") for row in rows)
        spec = ShardSpec(f"{split}-0", split, concept.name, content_fingerprint(config, concept), items)
        markers.append(write_shard(store, spec, rows, shard_bytes(rows, concept.name, concept.prompt, "png")))
    write_index(store, config, concept, markers)
