"""Published bases: ``base/<base_id>/`` and the done-marker of their training.

Example:
    base = load_base(store, base_id)
    edited_BCHW = base.generator(photos_BCHW, tokens_BTD)
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from e2gan_cluster import __version__
from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import NetsConfig, RunConfig
from e2gan_cluster.config_io import fingerprint
from e2gan_cluster.errors import InputError, IntegrityError
from e2gan_cluster.nn.discriminator import Discriminator
from e2gan_cluster.nn.generator import Generator
from e2gan_cluster.pairs.plan import pairs_fingerprint
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.storage.manifest import MANIFEST, Manifest
from e2gan_cluster.train.nets import build_discriminator, build_generator

BUNDLED_BASE_DIR = Path(__file__).resolve().parent.parent / "assets" / "base"
RANDOM = "random"
GENERATOR, DISCRIMINATOR, CONFIG = "generator.safetensors", "discriminator.safetensors", "config.json"
_FORMAT = 1
# How often to save and look, and how to compute, do not change what is learned.
_NOT_IN_FINGERPRINT = {"checkpoint_images", "eval_images", "compile", "channels_last"}


@dataclass(frozen=True)
class Base:
    """A published base.

    Attributes:
        generator: With averaged weights, in evaluation mode.
        discriminator: As it was at the end of training.
        nets: Sizes and variants of both.
        base_id: First 12 hex digits of the sha256 of its generator file.
        meta: Facts of its manifest: concepts, metrics, fingerprints.
        text_dim: Size of a prompt token.
    """

    generator: Generator
    discriminator: Discriminator
    nets: NetsConfig
    base_id: str
    meta: Mapping[str, Any]
    text_dim: int


def base_fingerprint(config: RunConfig, base_concepts: Sequence[Concept]) -> str:
    """What decides a base: networks, training, seed, and the pair setting of every base concept. 32 hex digits.

    The number of workers is left out: it changes neither the samples nor their order.
    """
    facts = {
        "format": _FORMAT,
        "nets": config.nets.model_dump(mode="json"),
        "train": config.base.train.model_dump(mode="json", exclude=_NOT_IN_FINGERPRINT),
        "seed": config.seed,
        "pairs": {concept.name: pairs_fingerprint(config, concept) for concept in base_concepts},
        "prompts": {concept.name: concept.prompt for concept in base_concepts},
    }
    if config.base.start_from != RANDOM:
        facts["start_from"] = start_id(config.base.start_from)
    return fingerprint(facts)[:32]


def start_id(start_from: str) -> str:
    """The base_id that `base.start_from` stands for; ``random`` stays."""
    return bundled_base_facts()["generator_sha256"][:12] if start_from == "bundled" else start_from


def bundled_base_facts(folder: Path = BUNDLED_BASE_DIR) -> Mapping[str, Any]:
    """Networks, concepts, images seen and sha256 of the base that ships with the package, or of one of its kind."""
    return json.loads((folder / CONFIG).read_text())


def publish_base(
    store: ObjectStore,
    generator: Generator,
    discriminator: Discriminator,
    nets: NetsConfig,
    text_dim: int,
    meta: Mapping[str, Any],
    extra: Mapping[str, bytes],
) -> str:
    """Publishes a base: its files, then its manifest. The same weights again change nothing.

    Args:
        store: Where to.
        generator: With the weights to publish.
        discriminator: Goes along: adapters start from it.
        nets: Sizes and variants.
        text_dim: Size of a prompt token.
        meta: Facts for the manifest.
        extra: Other files (``README.md``, ``samples.png``).

    Returns:
        ``base_id``.

    Raises:
        StoreError: Storage fails; without a manifest the half-published base is invisible.
    """
    weights = save_module(generator)
    base_id = hashlib.sha256(weights).hexdigest()[:12]
    config = {"format": _FORMAT, "nets": nets.model_dump(mode="json"), "text_dim": text_dim}
    files = {
        GENERATOR: weights,
        DISCRIMINATOR: save_module(discriminator),
        CONFIG: json.dumps(config, indent=1, sort_keys=True).encode(),
        **extra,
    }
    if store.head(keys.base_file(base_id, MANIFEST)) is not None:
        return base_id
    for name, data in files.items():
        # A killed publication may have left other bytes under this name; no manifest means nobody relies on them.
        store.put(keys.base_file(base_id, name), data)
    manifest = Manifest.build(files, {**meta, "base_id": base_id, "code_version": __version__})
    store.put_new(keys.base_file(base_id, MANIFEST), manifest.to_json())
    return base_id


def load_base(store: ObjectStore, base_id: str, device: str | torch.device = "cpu") -> Base:
    """Loads and verifies a published base.

    Args:
        store: Where from.
        base_id: Which.
        device: Where the networks go.

    Raises:
        InputError: There is no such base.
        IntegrityError: A file is missing, damaged, or not what its manifest promises.
    """
    manifest = read_base_manifest(store, base_id)
    config = json.loads(_read(store, base_id, manifest, CONFIG))
    nets, text_dim = NetsConfig(**config["nets"]), int(config["text_dim"])
    generator, discriminator = build_generator(nets, text_dim), build_discriminator(nets, text_dim)
    for module, name in ((generator, GENERATOR), (discriminator, DISCRIMINATOR)):
        try:
            module.load_state_dict(load(_read(store, base_id, manifest, name)))
        except RuntimeError as error:
            raise IntegrityError(
                f"{keys.base_file(base_id, name)} does not fit this version's networks: {error}",
                "train the base again with `e2gan base`, or use the version of the code named in its manifest",
            ) from error
    return Base(generator.to(device).eval(), discriminator.to(device).eval(), nets, base_id, manifest.meta, text_dim)


def finished_base(store: ObjectStore, fingerprint: str) -> str | None:
    """The published base of a finished training, or None; ``fingerprint`` is from `base_fingerprint`."""
    try:
        base_id = json.loads(store.get(keys.base_pointer(fingerprint)))["base_id"]
        read_base_manifest(store, base_id)
    except (KeyError, ValueError, InputError, IntegrityError):
        return None
    return base_id


def read_base_manifest(store: ObjectStore, base_id: str) -> Manifest:
    """Manifest of a base, checked against the id.

    Raises:
        InputError: There is no such base.
        IntegrityError: The manifest is damaged or of another base.
    """
    key = keys.base_file(base_id, MANIFEST)
    try:
        manifest = Manifest.parse(store.get(key), key)
    except KeyError as error:
        raise InputError(f"there is no base {base_id} in {store.url}", "train one with `e2gan base`") from error
    entry = manifest.entry(GENERATOR)
    if entry is None or not entry.sha256.startswith(base_id):
        raise IntegrityError(f"{key} does not belong to base {base_id}", "train the base again with `e2gan base`")
    return manifest


def save_module(module: torch.nn.Module) -> bytes:
    """A module's weights as safetensors bytes."""
    return save({name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()})


def _read(store: ObjectStore, base_id: str, manifest: Manifest, name: str) -> bytes:
    key = keys.base_file(base_id, name)
    entry = manifest.entry(name)
    if entry is None:
        raise IntegrityError(f"the manifest of base {base_id} does not list {name}")
    try:
        return store.get(key, sha256=entry.sha256, size=entry.size)
    except KeyError as error:
        raise IntegrityError(f"{key} is missing from {store.url}", "train the base again") from error
