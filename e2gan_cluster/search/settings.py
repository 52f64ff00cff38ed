"""What a search on one base is decided by, and its fingerprint. Light: no torch, no Ray.

Example:
    >>> setting = SearchSetting(config, "runs/demo", base_id, table.start_ranks)
    >>> setting.fingerprint(concept, pairs_digest(store, config, concept))
    '3f0c9a5e1b2d4c6f'
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig, TrainConfig
from e2gan_cluster.config_io import fingerprint
from e2gan_cluster.search.records import TrialSpec

# Where and how many at a time does not change what a trial gives; ranks stand for what they are derived from.
_NOT_DECIDING = {
    "num_workers", "worker_cpus", "worker_gpus", "max_hours", "probe_concepts", "probe_images", "probe_mode",
    "keep_parts", "crucial_parts", "start_rank",
}  # fmt: skip
_NOT_TRAINING = {"checkpoint_images", "eval_images"}


@dataclass(frozen=True)
class SearchSetting:
    """Everything that a trial's result depends on beside its spec and the store.

    Attributes:
        config: Resolved run config.
        storage: Root of the store, absolute or a URL.
        base_id: Base that is adapted.
        start_ranks: Layer -> rank on the first rung.
    """

    config: RunConfig
    storage: str
    base_id: str
    start_ranks: Mapping[str, int]

    def fingerprint(self, concept: Concept, pairs: str) -> str:
        """Name of a concept's search: 16 hex digits.

        Args:
            concept: The edit.
            pairs: Digest of its finished pairs.
        """
        search = self.config.search.model_dump(mode="json", exclude=_NOT_DECIDING)
        search["train"] = {k: v for k, v in search["train"].items() if k not in _NOT_TRAINING}
        decides: dict[str, Any] = {
            "base_id": self.base_id,
            "search": search,
            "start_ranks": dict(self.start_ranks),
            "prompt": concept.prompt,
            "pairs": pairs,
            "seed": self.config.seed,
        }
        return fingerprint(decides)[:16]

    def train_config(self, spec: TrialSpec) -> TrainConfig:
        """Training options of a trial."""
        search = self.config.search
        images = search.train.images
        if search.trial_images == "per-pair":
            images = max(search.train.batch_size, math.ceil(images * spec.data_size / max(search.data_sizes)))
        loss = search.train.loss
        if search.discriminator == "none":
            loss = loss.model_copy(update={"gan_weight": 0.0})
        return search.train.model_copy(update={"images": images, "loss": loss})

    def seed(self, concept: str, spec: TrialSpec) -> int:
        """Seed of a trial, from what it is and nothing else; below 2**31."""
        text = f"{self.config.seed}|{concept}|{spec.training_id}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def absolute_root(url: str) -> str:
    """A store's root as workers in other folders can open it."""
    return url if "://" in url else str(Path(url).resolve())


def concept_to_json(concept: Concept) -> dict[str, Any]:
    """JSON form of a concept."""
    return {
        "name": concept.name,
        "prompt": concept.prompt,
        "wordings": list(concept.wordings),
        "tags": list(concept.tags),
        "negative_prompt": concept.negative_prompt,
        "teacher": dict(concept.teacher),
    }


def concept_from_json(raw: Mapping[str, Any]) -> Concept:
    """Inverse of `concept_to_json`."""
    return Concept(**{**raw, "wordings": tuple(raw["wordings"]), "tags": tuple(raw["tags"])})
