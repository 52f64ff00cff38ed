"""The state of a batch, read from storage alone: while it runs, after it, from any machine.

Example: ``e2gan status --config configs/demo.yaml``
"""

import json
import os
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from e2gan_cluster.batch import Batch
from e2gan_cluster.progress import Reporter
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore

HEARTBEAT_S = 5.0
# A run whose heartbeat is older than this is taken for dead.
STALE_S = 60.0


@dataclass(frozen=True)
class ConceptRow:
    """One concept of a batch.

    Attributes:
        state: `waiting`, `pairs`, `searching`, `adapted`, `published` or `failed`.
        pairs: Usable training pairs.
        trials: Finished trials of its search.
        metric: Best metric on held-out photos, None before there is one.
        pick: Rank multiplier and data size, empty before the pick.
        cost: Machine price of the seconds spent on it so far.
        reason: Why it failed.
    """

    concept: str
    role: str
    state: str
    pairs: int = 0
    trials: int = 0
    metric: float | None = None
    pick: str = ""
    seconds: float = 0.0
    cost: float = 0.0
    version: str = ""
    reason: str = ""


@dataclass(frozen=True)
class BatchStatus:
    """A whole batch: rows, stages and whether it is running now."""

    name: str
    fingerprint: str
    running: str
    stages: Mapping[str, Any]
    progress: Mapping[str, Any]
    rows: list[ConceptRow] = field(default_factory=list)


def batch_status(batch: Batch) -> BatchStatus:
    """Read the state of a batch; a few listings and one small read per concept."""
    store = batch.store
    stages = _json(store, keys.run_status(batch.fingerprint, "stages.json"))
    failures = _json(store, keys.run_status(batch.fingerprint, "failures.json"))
    heartbeat = _json(store, keys.run_status(batch.fingerprint, "heartbeat.json"))
    searches = _searches(store)
    base = {concept.name for concept in batch.base}
    price_s = batch.config.costs.machine_per_hour / 3600
    rows = [
        _row(batch, concept.name, concept.name in base, searches.get(concept.name, []), failures, price_s)
        for concept in batch.concepts
    ]
    return BatchStatus(
        batch.config.name, batch.fingerprint, _liveness(heartbeat), stages, heartbeat.get("tasks", {}), rows
    )


def _row(
    batch: Batch, name: str, in_base: bool, search_keys: list[str], failures: Mapping[str, str], price_s: float
) -> ConceptRow:
    store = batch.store
    pairs = _json(store, keys.pairs_status(name))
    role = "base" if in_base else "new"
    num_pairs = int(pairs.get("splits", {}).get("train", {}).get("counts", {}).get("ok", 0))
    seconds = float(pairs.get("seconds", 0.0))
    results = [key for key in search_keys if key.endswith("/result.json")]
    trials = [key for key in search_keys if "/trials/" in key and key.endswith(".json") and key.count("/") == 4]
    state = "pairs" if num_pairs else "waiting"
    metric, pick, version = None, "", ""
    reason = failures.get(name, "") or str(pairs.get("failure") or "")
    if trials and not in_base:
        state = "searching"
    if results:
        result = _json(store, results[-1])
        state = "adapted" if result.get("state") == "done" else "failed"
        metric = result.get("metric")
        pick = f"{result.get('rank_multiplier')}x rank, {result.get('data_size')} pairs" if state == "adapted" else ""
        seconds += float(result.get("seconds", 0.0))
        reason = reason or str(result.get("failure") or "")
    if state == "adapted":
        published = next((key for key in search_keys if key.endswith("/published.json")), None)
        if published:
            state, version = "published", str(_json(store, published).get("version", ""))
    if reason and state != "published":
        state = "failed"
    return ConceptRow(
        name, role, state, num_pairs, len(trials), metric, pick, seconds, seconds * price_s, version,
        "" if state == "published" else reason,
    )  # fmt: skip


def _searches(store: ObjectStore) -> dict[str, list[str]]:
    """Keys of each concept's searches; of several settings the one with a result, else the fullest, counts."""
    settings: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for info in store.list("search/"):
        parts = info.key.split("/")
        if len(parts) >= 4:
            settings[parts[1]][parts[2]].append(info.key)
    return {
        concept: max(found.values(), key=lambda group: (any(key.endswith("/result.json") for key in group), len(group)))
        for concept, found in settings.items()
    }


def _liveness(heartbeat: Mapping[str, Any]) -> str:
    if not heartbeat:
        return "not started"
    age_s = (datetime.now(UTC) - datetime.fromisoformat(heartbeat["at"])).total_seconds()
    where = f"{heartbeat['host']}, process {heartbeat['pid']}"
    if heartbeat.get("ended"):
        return f"ended ({heartbeat['ended']})"
    return (
        f"running on {where}"
        if age_s < STALE_S
        else f"silent for {age_s:.0f} s (was on {where}): start it again to resume"
    )


def _json(store: ObjectStore, key: str) -> dict[str, Any]:
    try:
        record = json.loads(store.get(key))
    except (KeyError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def request_stop(batch: Batch) -> None:
    """Ask the run of this batch, wherever it is, to stop within seconds; the next run resumes."""
    batch.store.put(keys.run_status(batch.fingerprint, "stop.json"), b"{}")


class Heartbeat:
    """A reporter that also keeps `heartbeat.json` in storage and heeds `request_stop`.

    Used as a context manager around a run. A stop request raises SIGTERM in this process, the same as `kill`.

    Args:
        batch: The running batch.
        inner: Where progress is shown.
    """

    def __init__(self, batch: Batch, inner: Reporter) -> None:
        self._batch = batch
        self._inner = inner
        self._tasks: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._batch.store.delete(keys.run_status(self._batch.fingerprint, "stop.json"))
        self._write(None)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end.set()
        self._thread.join(HEARTBEAT_S)
        stopped = kind is not None and issubclass(kind, SystemExit | KeyboardInterrupt)
        self._write("stopped" if stopped else "failed" if kind else "done")

    def start(self, task: str, total: int, unit: str) -> None:
        """Begin a task of ``total`` units."""
        with self._lock:
            self._tasks[task] = {"done": 0, "total": total, "unit": unit, "started": time.time()}
        self._inner.start(task, total, unit)

    def update(self, task: str, done: int, **facts: object) -> None:
        """Tell how far a task is."""
        with self._lock:
            if task in self._tasks:
                self._tasks[task].update(done=done, **{key: value for key, value in facts.items() if key != "done"})
        self._inner.update(task, done, **facts)

    def finish(self, task: str, message: str = "") -> None:
        """End a task."""
        with self._lock:
            self._tasks.pop(task, None)
        self._inner.finish(task, message)

    def note(self, message: str, **facts: object) -> None:
        """Say one thing."""
        self._inner.note(message, **facts)

    def _beat(self) -> None:
        stop_key = keys.run_status(self._batch.fingerprint, "stop.json")
        while not self._end.wait(HEARTBEAT_S):
            try:
                self._write(None)
                if self._batch.store.head(stop_key) is not None:
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
            except Exception as error:  # noqa: BLE001 - storage away for a while must not end a run
                self._inner.note(f"heartbeat could not be written: {error}")

    def _write(self, ended: str | None) -> None:
        with self._lock:
            record = {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "tasks": dict(self._tasks),
                "ended": ended,
            }
        data = json.dumps(record, default=str).encode()
        self._batch.store.put(keys.run_status(self._batch.fingerprint, "heartbeat.json"), data)
