"""What of a search is told to the tracker: a run per trial, and the concept's run with the winner, table and pictures.

Called by the driver only. The tracker never raises and never waits.
"""

import csv
import io
from typing import TYPE_CHECKING

from e2gan_cluster.concepts import Concept
from e2gan_cluster.search.layer_table import PICTURE, TABLE, LayerTable
from e2gan_cluster.search.records import ConceptResult, TrialRecord
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore

if TYPE_CHECKING:
    from e2gan_cluster.track.mlflow_tracker import NullTracker, Tracker

PICTURES = ("samples.png", "curve.png")


def log_trial(tracker: "Tracker | NullTracker", record: TrialRecord, metric_name: str, base_id: str, lr: float) -> None:
    """One trial as one run: parameters, final values, curve over images."""
    spec = record.spec
    params = {
        "rank": max(record.ranks.values(), default=0),
        "rank_multiplier": spec.multiplier,
        "data_size": spec.data_size,
        "seed": spec.seed_index,
        "until": spec.until,
        "lr": lr,
        "base_id": base_id,
        "concept": spec.concept,
        "state": record.state,
        "init": spec.init or "zero",
    }
    metrics = {
        metric_name: record.metric,
        "adapter_bytes": float(record.adapter_bytes),
        "parameters": float(record.trained_parameters),
        "train_seconds": record.seconds,
        "images": float(record.images),
    }
    history = [(metric_name, point.metric, point.images) for point in record.curve]
    history += [(f"loss/{name}", value, p.images) for p in record.curve for name, value in sorted(p.losses.items())]
    tracker.log_trial(spec.concept, spec.trial_id, params, metrics, history)


def log_result(tracker: "Tracker | NullTracker", store: ObjectStore, concept: Concept, result: ConceptResult) -> None:
    """A concept's end in its own run."""
    run = tracker.concept_run(concept.name, concept.prompt)
    if result.state != "done":
        tracker.log(run, {"state": result.state, "reason": result.failure or ""}, {})
        tracker.finish(run, ok=False)
        return
    params = {
        "state": result.state,
        "base_id": result.base_id,
        "rank": max(result.ranks.values(), default=0),
        "rank_multiplier": result.rank_multiplier,
        "data_size": result.data_size,
        "pick": result.pick,
        "ranks": " ".join(f"{layer}={rank}" for layer, rank in sorted(result.ranks.items())),
        "init": result.init or "zero",
    }
    metrics = dict(result.metrics)
    metrics |= {f"base_{name}": value for name, value in result.base_metrics.items()}
    metrics |= {f"identity_{name}": value for name, value in result.identity_metrics.items()}
    metrics |= {
        "adapter_bytes": float(result.adapter_bytes),
        "search_seconds": result.seconds,
        "search_images": float(result.images),
        "trials": float(result.trials),
    }
    tracker.log(run, params, metrics)
    tracker.log_file(run, "ladder.csv", ladder_csv(result))
    for name in PICTURES:
        try:
            tracker.log_file(run, name, store.get(keys.search_file(result.concept, result.fingerprint, name)))
        except KeyError:
            continue
    tracker.finish(run, ok=True)


def ladder_csv(result: ConceptResult) -> bytes:
    """The ladder table."""
    text = io.StringIO()
    if result.table:
        writer = csv.DictWriter(text, list(result.table[0]))
        writer.writeheader()
        writer.writerows(result.table)
    return text.getvalue().encode()


def log_layers(tracker: "Tracker | NullTracker", store: ObjectStore, table: LayerTable) -> None:
    """The crucial-layer analysis in the run of its stage."""
    run = tracker.stage_run("layers")
    metrics = {f"gain/{row.part}": row.gain for row in table.rows}
    metrics |= {f"gain_per_1000/{row.part}": row.gain_per_1000 for row in table.rows}
    tracker.log(run, {"base_id": table.base_id, "parts": " ".join(table.parts), "mode": table.mode}, metrics)
    for name in (TABLE, PICTURE):
        try:
            tracker.log_file(run, name, store.get(keys.layers_file(table.base_id, name)))
        except KeyError:
            continue
    tracker.finish(run, ok=True)
