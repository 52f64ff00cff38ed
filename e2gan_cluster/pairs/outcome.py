"""Writes down what a generation run has: index, status and grid of every concept, and the same to a tracker.

Example:
    >>> finish(ledger, store, ("train", "heldout"), reporter, tracker)["oil-painting"].train_ok
    1000
"""

import json
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from e2gan_cluster.pairs.ledger import ConceptLedger, Ledger, PairsResult, status_record
from e2gan_cluster.pairs.plan import SPLITS, Split
from e2gan_cluster.pairs.rows import OK, decode_image
from e2gan_cluster.pairs.shards import DoneMarker, read_shard, write_index
from e2gan_cluster.progress import Reporter
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore

GRID_ROWS = 8


class PairsTracker(Protocol):
    """What is used of a tracker; see `e2gan_cluster.track`."""

    def concept_run(self, concept: str, prompt: str) -> str:
        """Run id of a concept."""
        ...

    def log(self, run_id: str, params: dict[str, object], metrics: dict[str, float], step: int | None) -> None:
        """Logs metrics."""
        ...

    def log_file(self, run_id: str, path_name: str, data: bytes) -> None:
        """Stores a file."""
        ...


def finish(
    ledger: Ledger, store: ObjectStore, splits: Sequence[Split], reporter: Reporter, tracker: PairsTracker | None
) -> dict[str, PairsResult]:
    """Writes index, status and grids of every concept."""
    results: dict[str, PairsResult] = {}
    for name, concept_ledger in ledger.concepts.items():
        result = ledger.result(name, splits)
        results[name] = result
        if result.failure:
            reporter.note(f"concept {name}: {result.failure}")
        else:
            complete: list[Split] = [split for split in SPLITS if concept_ledger.complete(split)]
            markers = [marker for split in complete for marker in concept_ledger.split_markers(split)]
            write_index(store, ledger.config, concept_ledger.concept, markers, concept_ledger.imported)
        before = _seconds_before(store, name)
        store.put(keys.pairs_status(name), status_record(concept_ledger, result, ledger.config, before))
        grids = _grids(store, concept_ledger, splits)
        if tracker is not None:
            _track(tracker, concept_ledger, result, grids)
    return results


def _seconds_before(store: ObjectStore, concept: str) -> float:
    """Worker seconds that earlier runs spent on a concept."""
    try:
        return float(json.loads(store.get(keys.pairs_status(concept)))["seconds"])
    except (KeyError, ValueError):
        return 0.0


def _grids(store: ObjectStore, ledger: ConceptLedger, splits: Sequence[Split]) -> dict[str, bytes]:
    """Photo beside edit for the first pairs of each split; remade only if a shard is new."""
    from e2gan_cluster.evaluate.grids import grid_png

    grids = {}
    for split in splits:
        key = keys.pairs_grid(ledger.concept.name, split)
        markers = ledger.split_markers(split)
        if not markers or (not ledger.made and store.head(key)):
            continue
        columns = list(_first_pairs(store, ledger.concept.name, markers))
        if not columns:
            continue
        photos, edits = zip(*columns, strict=True)
        grids[split] = grid_png({"photo": np.stack(photos), ledger.concept.name: np.stack(edits)}, GRID_ROWS)
        store.put(key, grids[split])
    return grids


def _first_pairs(
    store: ObjectStore, concept: str, markers: Sequence[DoneMarker]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    left = GRID_ROWS
    for marker in markers:
        table = read_shard(store, concept, marker).select(["input_image", "edited_image", "status"])
        for row in table.to_pylist():
            if left and row["status"] == OK:
                left -= 1
                yield decode_image(row["input_image"]["bytes"]), decode_image(row["edited_image"]["bytes"])
        if not left:
            return


def _track(tracker: PairsTracker, ledger: ConceptLedger, result: PairsResult, grids: dict[str, bytes]) -> None:
    run_id = tracker.concept_run(result.concept, ledger.concept.prompt)
    metrics = {"pairs/train": float(result.train_ok), "pairs/heldout": float(result.heldout_ok)}
    metrics |= {f"pairs/dropped/{reason}": float(count) for reason, count in result.dropped.items()}
    tracker.log(run_id, {}, metrics, None)
    for split, png in grids.items():
        tracker.log_file(run_id, f"pairs-{split}.png", png)
