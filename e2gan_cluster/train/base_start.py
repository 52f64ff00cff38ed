"""Weights that the training of a base starts from: random ones, those of a finished base, or the base in the package.

Example:
    >>> start = load_start("bundled", NetsConfig(width=24, disc_width=24), 384, store)
    >>> generator.load_state_dict(start.generator.state_dict())
"""

import hashlib
from pathlib import Path

from safetensors.torch import load

from e2gan_cluster.config import NetsConfig
from e2gan_cluster.errors import ConfigError, IntegrityError
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.train.base_store import (
    BUNDLED_BASE_DIR,
    DISCRIMINATOR,
    GENERATOR,
    Base,
    bundled_base_facts,
    load_base,
)
from e2gan_cluster.train.nets import build_discriminator, build_generator


def load_start(start_from: str, nets: NetsConfig, text_dim: int, store: ObjectStore) -> Base:
    """Loads the base that a training starts from.

    Args:
        start_from: `base.start_from`: ``bundled`` or a base_id of the storage.
        nets: Networks of the run.
        text_dim: Size of its prompt tokens.
        store: Where finished bases are.

    Raises:
        ConfigError: Its networks are not those of the run.
        InputError: There is no such base.
        IntegrityError: It is damaged.
    """
    base = load_bundled_base() if start_from == "bundled" else load_base(store, start_from)
    theirs, ours = base.nets.model_dump(), nets.model_dump()
    different = [name for name, value in theirs.items() if ours[name] != value]
    if different or base.text_dim != text_dim:
        wanted = ", ".join(f"nets.{name} = {theirs[name]}" for name in different) or f"prompt tokens of {base.text_dim}"
        raise ConfigError(
            f"base.start_from = {start_from} has other networks than this run: {wanted}.",
            fix="Set nets as that base has them, or base.start_from to random.",
        )
    return base


def load_bundled_base(folder: Path = BUNDLED_BASE_DIR) -> Base:
    """The base that ships with the package (docs/base.md says how it was trained).

    Args:
        folder: Of its files.

    Raises:
        IntegrityError: Its files are missing or damaged.
    """
    try:
        facts = bundled_base_facts(folder)
        generator_file = (folder / GENERATOR).read_bytes()
        discriminator_file = (folder / DISCRIMINATOR).read_bytes()
    except OSError as error:
        raise IntegrityError(f"The bundled base can't be read: {error}", fix="Install the package again.") from error
    if hashlib.sha256(generator_file).hexdigest() != facts["generator_sha256"]:
        raise IntegrityError("The bundled base's generator is damaged.", fix="Install the package again.")
    nets, text_dim = NetsConfig(**facts["nets"]), int(facts["text_dim"])
    generator, discriminator = build_generator(nets, text_dim), build_discriminator(nets, text_dim)
    # Stored in half precision; copied into float32 parameters.
    generator.load_state_dict(load(generator_file))
    discriminator.load_state_dict(load(discriminator_file))
    base_id = facts["generator_sha256"][:12]
    return Base(generator.eval(), discriminator.eval(), nets, base_id, facts, text_dim)
