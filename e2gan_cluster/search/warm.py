"""Where a concept's search starts: the adapter of the nearest concept, and the rungs that one needed.

Who starts from whom is settled once, from prompt embeddings alone, and stored create-only: a resumed search starts as
the first one did, whatever has been finished since.

Example:
    >>> assign_donors(["a", "b", "c"], pooled_ND, finished={})
    {'a': None, 'b': 'a', 'c': 'a'}
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from e2gan_cluster.search.records import ConceptResult
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore

START = "start.json"


@dataclass(frozen=True)
class Start:
    """How a concept's search begins.

    Attributes:
        donor: Concept whose adapter is the start; None = cold.
        prefix: Key prefix of that adapter; empty while the donor is still searched for in the same batch.
        rank_rung: Rank rung the donor needed.
        data_rung: Data rung the donor needed.
    """

    donor: str | None = None
    prefix: str = ""
    rank_rung: int = 0
    data_rung: int = 0


def assign_donors(
    names: Sequence[str], pooled_ND: np.ndarray, finished: Mapping[str, np.ndarray]
) -> dict[str, str | None]:
    """Nearest concept to start from.

    Concepts finished before are donors at once. Of the batch, about the square root of its size go first, far from
    each other (greedy k-centre); all others may start from these.

    Args:
        names: Concepts of the batch, in order.
        pooled_ND: Their prompt embeddings, unit length.
        finished: Concept -> embedding of those adapted on this base before.

    Returns:
        Concept -> donor, None for those that start cold.
    """
    donors = dict(finished)
    pioneers: list[str] = []
    rows = dict(zip(names, pooled_ND, strict=True))
    for _ in range(math.ceil(math.sqrt(len(names)))):
        rest = [name for name in names if name not in pioneers]
        known = [*donors.values(), *(rows[name] for name in pioneers)]
        far = min(rest, key=lambda name: max((float(rows[name] @ other) for other in known), default=-1.0))
        pioneers.append(far)
    starts: dict[str, str | None] = {}
    for name in names:
        choices = donors if name in pioneers else {**donors, **{p: rows[p] for p in pioneers}}
        starts[name] = max(choices, key=lambda other: float(choices[other] @ rows[name]), default=None)
    return starts


def start_from_result(result: ConceptResult, multipliers: Sequence[int], sizes: Sequence[int]) -> Start:
    """A start from a finished concept: its adapter, and the rungs one below those it needed."""
    rank_rung = sum(m < result.rank_multiplier for m in sorted(set(multipliers)))
    data_rung = sum(n < result.data_size for n in sorted(set(sizes)))
    return Start(result.concept, result.adapter_key_prefix, max(0, rank_rung - 1), max(0, data_rung - 1))


def read_start(store: ObjectStore, concept: str, fingerprint: str) -> Start | None:
    """The start settled before, or None."""
    try:
        return Start(**json.loads(store.get(keys.search_file(concept, fingerprint, START))))
    except KeyError:
        return None


def write_start(store: ObjectStore, concept: str, fingerprint: str, start: Start) -> Start:
    """Settle a start; the first writer wins.

    Returns:
        The start that counts.
    """
    key = keys.search_file(concept, fingerprint, START)
    if store.put_new(key, json.dumps(asdict(start), sort_keys=True).encode()):
        return start
    return Start(**json.loads(store.get(key)))
