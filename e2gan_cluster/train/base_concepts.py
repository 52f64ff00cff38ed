"""Which concepts the base learns: few that represent many (E2GAN 3.2: about 20).

k-means on the pooled prompt embeddings of the catalogue; the concept nearest to each centre is taken.

Example:
    choice = choose_base_concepts(config, load_catalogue("bundled"), PromptEncoder())
    choice.names, choice.reasons
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import ConfigError
from e2gan_cluster.train.data import Encoder


@dataclass(frozen=True)
class BaseChoice:
    """Base concepts and why.

    Attributes:
        names: In catalogue order.
        reasons: Name -> sentence.
        selection: How they were chosen: ``named``, ``kmeans`` or ``random``.
    """

    names: tuple[str, ...]
    reasons: Mapping[str, str]
    selection: str

    def to_json(self) -> dict[str, Any]:
        """For the base's manifest."""
        return asdict(self)


def choose_base_concepts(config: RunConfig, catalogue: Sequence[Concept], encoder: Encoder | None) -> BaseChoice:
    """Chooses by the config: named, k-means, or random. Concepts that ``concepts.new`` names are not eligible.

    Args:
        config: Which way, how many, seed.
        catalogue: All concepts.
        encoder: Prompt encoder; needed for k-means.

    Raises:
        ConfigError: Fewer concepts are eligible than asked for.
    """
    options = config.concepts
    if options.base:
        return BaseChoice(tuple(options.base), dict.fromkeys(options.base, "named in concepts.base"), "named")
    reserved = set(options.new) if isinstance(options.new, list) else set()
    eligible = [concept for concept in catalogue if concept.name not in reserved]
    count = options.base_count
    if len(eligible) < count:
        raise ConfigError(
            f"concepts.base_count = {count}, but the catalogue has only {len(eligible)} concepts besides concepts.new",
            "lower concepts.base_count or name fewer in concepts.new",
        )
    if options.base_selection == "random":
        picked = np.random.default_rng(config.seed).choice(len(eligible), count, replace=False)
        names = tuple(eligible[i].name for i in sorted(picked.tolist()))
        return BaseChoice(names, dict.fromkeys(names, f"random draw, seed {config.seed}"), "random")
    if encoder is None:
        raise ValueError("k-means needs the prompt encoder")
    pooled_CD = encoder.encode([concept.prompt for concept in eligible]).pooled_BD.numpy()
    members = representatives(pooled_CD, count, config.seed)
    reasons = {}
    for index in sorted(members):
        others = [eligible[i].name for i in members[index] if i != index]
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        reasons[eligible[index].name] = f"nearest to the centre of {len(others) + 1} prompts" + (
            f"; stands for {shown}" if others else ""
        )
    return BaseChoice(tuple(reasons), reasons, "kmeans")


def representatives(pooled_CD: np.ndarray, count: int, seed: int) -> dict[int, list[int]]:
    """The row nearest to each k-means centre, and the rows of its cluster.

    Args:
        pooled_CD: One unit vector per concept.
        count: Number of clusters.
        seed: Seed of the k-means starts.

    Returns:
        Representative -> members of its cluster, itself included; exactly ``count`` of them.
    """
    from sklearn.cluster import KMeans

    kmeans = KMeans(count, n_init=10, random_state=seed)  # pyright: ignore[reportArgumentType]
    kmeans.fit(pooled_CD)
    clusters = [np.flatnonzero(kmeans.labels_ == cluster) for cluster in range(count)]
    members: dict[int, list[int]] = {}
    for centre_D, rows in zip(kmeans.cluster_centers_, clusters, strict=True):
        if len(rows):
            distance = np.linalg.norm(pooled_CD[rows] - centre_D, axis=1)
            members[int(rows[np.argmin(distance)])] = rows.tolist()
    # Equal prompts give fewer distinct points than clusters: fill up with any rows.
    spare = (i for i in range(len(pooled_CD)) if i not in members)
    while len(members) < count:
        index = next(spare)
        members[index] = [index]
    return members
