"""Everything that storage knows of a batch, read once: what the report and the comparison are made of.

Works at any time, while a batch runs and with stages missing; a damaged record becomes the reason of its concept.

Example:
    view = collect(config, store)
    view.concepts[0].result.metric
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from e2gan_cluster.batch import Batch, new_concepts, recorded_base, run_fingerprint
from e2gan_cluster.concepts import Concept, load_catalogue, select
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import UserError
from e2gan_cluster.search.records import ConceptResult
from e2gan_cluster.status import BatchStatus, ConceptRow, batch_status
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore

SAMPLES = "samples.png"
TRACKING = "tracking.json"
_READERS = 8


@dataclass(frozen=True)
class ConceptView:
    """One concept of a batch.

    Attributes:
        row: State, reason, trials, seconds, cost, version.
        prompt: Edit instruction.
        pairs: Split -> usable pairs.
        dropped: Reason code -> pairs dropped by the filters.
        result: How its search ended, None before it did.
        evaluation: Record of ``e2gan evaluate``, empty if it was not run.
        samples: Grid PNG of the search (photo, teacher, base, rungs), None if there is none.
        pairs_grid: Grid PNG of photos beside the teacher's edits, None if there is none.
    """

    row: ConceptRow
    prompt: str
    pairs: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    result: ConceptResult | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    samples: bytes | None = None
    pairs_grid: bytes | None = None

    @property
    def name(self) -> str:
        """Name of the concept."""
        return self.row.concept

    @property
    def floor(self) -> Mapping[str, float]:
        """Metrics between two teacher seeds, as far as measured."""
        return self.evaluation.get("floor", {})


@dataclass(frozen=True)
class BatchView:
    """A batch.

    Attributes:
        config: Its config.
        status: Liveness, stages, progress.
        concepts: New concepts, then base concepts.
        base_id: Base of the adapters, empty before there is one.
        base_meta: Facts of the base's manifest.
        layers_png: Picture of the crucial-layer analysis.
        tracking: Where its runs are in MLflow, as `Tracker.links` tells it.
        storage: URL of the store.
    """

    config: RunConfig
    status: BatchStatus
    concepts: list[ConceptView]
    base_id: str
    base_meta: Mapping[str, Any]
    layers_png: bytes | None
    tracking: Mapping[str, Any]
    storage: str

    @property
    def results(self) -> list[tuple[ConceptView, ConceptResult]]:
        """Concepts whose search ended with a pick."""
        return [(c, c.result) for c in self.concepts if c.result is not None and c.result.state == "done"]


def collect(config: RunConfig, store: ObjectStore, *, pictures: bool = True) -> BatchView:
    """Read all records of a batch.

    Args:
        config: Its config.
        store: Its storage.
        pictures: Also read the grids.

    Raises:
        InputError: The config names unknown concepts.
        StoreError: The storage cannot be reached.
    """
    digest = run_fingerprint(config)
    catalogue = load_catalogue(config.concepts.catalogue)
    base_names = config.concepts.base or recorded_base(store, digest) or []
    batch = Batch(config, store, digest, select(catalogue, base_names), new_concepts(config, catalogue, base_names))
    status = batch_status(batch)
    concepts = {concept.name: concept for concept in batch.concepts}
    rows = sorted(status.rows, key=lambda row: row.role == "base")
    searches = _search_folders(store)

    def view(row: ConceptRow) -> ConceptView:
        return _concept(config, store, concepts[row.concept], row, digest, searches.get(row.concept, []), pictures)

    with ThreadPoolExecutor(_READERS) as pool:
        views = list(pool.map(view, rows))
    base_id = next((c.result.base_id for c in views if c.result and c.result.base_id), "") or _only_base(store)
    return BatchView(
        config=config,
        status=status,
        concepts=views,
        base_id=base_id,
        base_meta=_json(store, keys.base_file(base_id, "manifest.json")).get("meta", {}) if base_id else {},
        layers_png=_layers_png(store, base_id) if base_id and pictures else None,
        tracking=_json(store, keys.run_status(digest, TRACKING)),
        storage=store.url,
    )


def _concept(
    config: RunConfig,
    store: ObjectStore,
    concept: Concept,
    row: ConceptRow,
    digest: str,
    searches: list[str],
    pictures: bool,
) -> ConceptView:
    pairs = _json(store, keys.pairs_status(concept.name))
    counts = {split: _dict(record.get("counts")) for split, record in _dict(pairs.get("splits")).items()}
    dropped: dict[str, int] = {}
    for split_counts in counts.values():
        for reason, number in split_counts.items():
            if reason != "ok":
                dropped[reason] = dropped.get(reason, 0) + int(number)
    result = _result(config, store, concept, searches)
    samples = keys.search_file(concept.name, result.fingerprint, SAMPLES) if result and result.fingerprint else None
    return ConceptView(
        row=row,
        prompt=concept.prompt,
        pairs={split: int(split_counts.get("ok", 0)) for split, split_counts in counts.items()},
        dropped=dict(sorted(dropped.items())),
        result=result,
        evaluation=_json(store, keys.evaluation(concept.name, digest[:16])),
        samples=_bytes(store, samples) if samples and pictures else None,
        pairs_grid=_bytes(store, keys.pairs_grid(concept.name, "heldout")) if pictures else None,
    )


def _search_folders(store: ObjectStore) -> dict[str, list[str]]:
    """Concept -> fingerprints of its searches that have a result, in one listing."""
    found: dict[str, list[str]] = {}
    for info in store.list("search/"):
        parts = info.key.split("/")
        if len(parts) == 4 and parts[3] == "result.json":
            found.setdefault(parts[1], []).append(parts[2])
    return found


def _result(config: RunConfig, store: ObjectStore, concept: Concept, fingerprints: list[str]) -> ConceptResult | None:
    """The result of a concept's search under this config."""
    results = []
    for fingerprint in fingerprints:
        try:
            results.append(ConceptResult.parse(store.get(keys.search_result(concept.name, fingerprint))))
        except KeyError:
            continue
        except UserError as error:
            results.append(ConceptResult(concept.name, "failed", failure=f"its record is damaged: {error.message}"))
    return _of_this_config(config, store, concept, results) if len(results) > 1 else next(iter(results), None)


def _of_this_config(
    config: RunConfig, store: ObjectStore, concept: Concept, results: list[ConceptResult]
) -> ConceptResult:
    """Of results under several search settings the one this config would find; else one that ended with a pick."""
    from e2gan_cluster.search.lookup import find_result

    for base_id in {result.base_id for result in results if result.base_id}:
        found = find_result(config, store, base_id, concept)
        if found is not None:
            return found
    return max(results, key=lambda result: result.state == "done")


def _only_base(store: ObjectStore) -> str:
    """The base of a storage that has just one."""
    bases = {info.key.split("/")[1] for info in store.list("base/") if info.key.endswith("/manifest.json")}
    return bases.pop() if len(bases) == 1 else ""


def _layers_png(store: ObjectStore, base_id: str) -> bytes | None:
    pictures = [info.key for info in store.list(keys.layers_prefix(base_id)) if info.key.endswith(".png")]
    return _bytes(store, pictures[0]) if pictures else None


def _json(store: ObjectStore, key: str) -> dict[str, Any]:
    """A JSON object, empty if it is missing or damaged."""
    data = _bytes(store, key)
    try:
        return _dict(json.loads(data)) if data else {}
    except ValueError:
        return {}


def _bytes(store: ObjectStore, key: str) -> bytes | None:
    try:
        return store.get(key)
    except KeyError:
        return None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
