"""What one config means on its storage: which concepts are the base's, which are new, what was run before.

Example:
    batch = open_batch(load_config(Path("configs/demo.yaml")))
    batch.base, batch.new
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from e2gan_cluster.concepts import Concept, load_catalogue, select
from e2gan_cluster.config import RunConfig
from e2gan_cluster.config_io import explain_changes, fingerprint, to_yaml
from e2gan_cluster.errors import InputError
from e2gan_cluster.storage import keys, open_store
from e2gan_cluster.storage.base import ObjectStore

# Where and how something runs does not change what comes out.
_PLACES = {"storage", "tracking", "ray", "costs"}


@dataclass(frozen=True)
class Batch:
    """A config with its storage and concepts.

    Attributes:
        config: Resolved config; ``storage`` is absolute.
        store: The opened storage.
        fingerprint: 64 hex digits; the same for the same work, wherever it is stored or run.
        base: Concepts the base is trained on.
        new: Concepts to adapt to.
    """

    config: RunConfig
    store: ObjectStore
    fingerprint: str
    base: list[Concept]
    new: list[Concept]

    @property
    def concepts(self) -> list[Concept]:
        """Base concepts, then new ones."""
        return [*self.base, *self.new]


def run_fingerprint(config: RunConfig) -> str:
    """Fingerprint of the work itself: without storage, tracking, Ray and prices."""
    return fingerprint(config.model_dump(mode="json", exclude=_PLACES))


def resolve_storage(config: RunConfig) -> RunConfig:
    """Make a folder ``storage`` absolute.

    A Ray job runs in a temporary copy of its working folder, so there a relative folder is taken below
    ``E2GAN_HOME`` (default ``~/e2gan``), where it outlives the job.
    """
    if "://" in config.storage or Path(config.storage).is_absolute():
        return config
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    root = Path(os.environ.get("E2GAN_HOME", Path.home() / "e2gan")) if in_job else Path.cwd()
    return config.model_copy(update={"storage": str(root / config.storage)})


def tracking_uri(config: RunConfig) -> str:
    """MLflow URI of a run: ``tracking``, else ``MLFLOW_TRACKING_URI``, else a sqlite file in the run folder."""
    address = config.tracking or os.environ.get("MLFLOW_TRACKING_URI")
    if address:
        return address
    folder = Path("runs") / config.name if "://" in config.storage else Path(config.storage)
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


def open_batch(config: RunConfig) -> Batch:
    """Open storage and settle the batch's concepts.

    Where the config names no base concepts they are chosen (k-means on prompt embeddings) once, and the choice
    is recorded and used again.

    Raises:
        InputError: A named concept is not in the catalogue, or none is left to adapt to.
        StoreError: Storage cannot be opened.
    """
    batch = peek_batch(config)
    if batch.base or not batch.concepts:
        return batch
    catalogue = load_catalogue(config.concepts.catalogue)
    names = _choose(batch.config, catalogue)
    record = json.dumps({"base": names}, indent=1).encode()
    batch.store.put(keys.run_status(batch.fingerprint, "concepts.json"), record)
    return replace(batch, base=select(catalogue, names), new=new_concepts(config, catalogue, names))


def peek_batch(config: RunConfig) -> Batch:
    """`open_batch` without choosing: ``base`` is empty where the config names none and no run has chosen yet.

    Needs neither torch nor Ray.

    Raises:
        InputError: A named concept is not in the catalogue.
        StoreError: Storage cannot be opened.
    """
    config = resolve_storage(config)
    store = open_store(config.storage)
    catalogue = load_catalogue(config.concepts.catalogue)
    digest = run_fingerprint(config)
    names = config.concepts.base or recorded_base(store, digest) or []
    return Batch(config, store, digest, select(catalogue, names), new_concepts(config, catalogue, names))


def recorded_base(store: ObjectStore, digest: str) -> list[str] | None:
    """Base concepts chosen by an earlier run of the same config, if there was one."""
    try:
        record: dict[str, Any] = json.loads(store.get(keys.run_status(digest, "concepts.json")))
    except KeyError:
        return None
    return record["base"]


def new_concepts(config: RunConfig, catalogue: list[Concept], base: Sequence[str]) -> list[Concept]:
    """Concepts to adapt to.

    Raises:
        InputError: One is unknown or is a base concept.
    """
    if config.concepts.new == "rest":
        rest = [concept for concept in catalogue if concept.name not in set(base)]
    else:
        rest = select(catalogue, config.concepts.new)
        both = sorted({concept.name for concept in rest} & set(base))
        if both:
            raise InputError(
                f"concepts.new names base concepts: {', '.join(both)}",
                "remove them from concepts.new or concepts.base",
            )
    return rest[: config.concepts.max_new]


def note_config(batch: Batch) -> list[str]:
    """Store the resolved config and say what changed since the last run of that name on this storage.

    Returns:
        One line per changed field; empty on the first run or without change.
    """
    key = keys.run_last(batch.config.name)
    now = batch.config.model_dump(mode="json", exclude=_PLACES)
    try:
        before = json.loads(batch.store.get(key))
    except KeyError:
        before = now
    batch.store.put(key, json.dumps(now, sort_keys=True, indent=1).encode())
    batch.store.put_new(keys.run_config(batch.fingerprint), to_yaml(batch.config).encode())
    return explain_changes(before, now)


def _choose(config: RunConfig, catalogue: list[Concept]) -> list[str]:
    from e2gan_cluster.text.encoder import PromptEncoder
    from e2gan_cluster.train.base_concepts import choose_base_concepts

    encoder = PromptEncoder(max_tokens=config.nets.text_tokens)
    return list(choose_base_concepts(config, catalogue, encoder).names)
