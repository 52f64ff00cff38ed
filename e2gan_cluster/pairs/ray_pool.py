"""Shards through Ray Data: a pool of actors, each with a loaded teacher; one small report comes back per shard.

Only names and photo references travel: an actor reads photos from their source and writes its shard to storage, so the
driver's memory does not grow with the work.
"""

import json
import logging
import signal
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import numpy as np

from e2gan_cluster import busy
from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import StoreError, TeacherError, UserError
from e2gan_cluster.pairs.gate import Gate, Incident
from e2gan_cluster.pairs.plan import ShardSpec
from e2gan_cluster.pairs.shards import DoneMarker
from e2gan_cluster.pairs.worker import ShardMaker

_LOG = logging.getLogger(__name__)
Failure = Literal["", "setup", "storage", "teacher", "gave-up", "stopped", "error"]
_NO_PROGRESS_MARGIN_S = 900
_LOG_LEVELS = {"ray.data": logging.WARNING, "ray.data._internal.progress": logging.ERROR}


@dataclass(frozen=True)
class ShardReport:
    """What became of one shard.

    Attributes:
        concept: Whose.
        shard: Name.
        rows: Rows it has.
        failure: Empty if it is finished.
        reason: For people, where it is not.
        fix: What to do about it, if known.
        marker: The done-marker, where it is finished.
        seconds: Time its worker spent on it.
        work_s: The part of it in edits and filters.
    """

    concept: str
    shard: str
    rows: int
    failure: Failure = ""
    reason: str = ""
    fix: str = ""
    marker: DoneMarker | None = None
    seconds: float = 0.0
    work_s: float = 0.0

    def to_json(self) -> str:
        """One line; read back by `from_json`."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "ShardReport":
        """Reads `to_json`."""
        record = json.loads(text)
        marker = record.pop("marker")
        return ShardReport(**record, marker=DoneMarker(**marker) if marker else None)


def make_reported(maker: ShardMaker, spec: ShardSpec) -> ShardReport:
    """Makes a shard and says what became of it; raises nothing that one shard can cause."""
    failure: Failure = "error"
    start = time.monotonic()
    try:
        marker = maker.make(spec)
        seconds = time.monotonic() - start
        return ShardReport(spec.concept, spec.name, len(spec.items), marker=marker, seconds=seconds)
    except StoreError as error:
        failure, reason, fix = "storage", error.message, error.fix
    except TeacherError as error:
        failure, reason, fix = "teacher", error.message, error.fix
    except UserError as error:
        reason, fix = error.message, error.fix
    except Exception as error:  # noqa: BLE001 - one shard must not end the run; the driver counts and names it
        _LOG.exception("shard %s of %s failed", spec.name, spec.concept)
        reason, fix = f"{type(error).__name__}: {error}", ""
    return ShardReport(spec.concept, spec.name, len(spec.items), failure, reason, fix)


class ShardWorker:
    """The actor of the pool, called by Ray Data.

    Args:
        config: Settings.
        concepts: By name.
        store_url: Storage root.
        gate: Handle of the `Gate` actor.
    """

    def __init__(self, config: RunConfig, concepts: Mapping[str, Concept], store_url: str, gate: Any) -> None:
        from e2gan_cluster.storage import open_store

        self._gate = gate
        self._timeout_s = config.pairs.shard_timeout_s
        self._maker: ShardMaker | None = None
        self._broken: tuple[str, str] = ("", "")
        try:
            self._maker = ShardMaker(config, concepts, open_store(store_url))
        except UserError as error:
            self._broken = (error.message, error.fix)
        except Exception as error:  # noqa: BLE001 - reported by the driver, once
            _LOG.exception("a worker could not start")
            self._broken = (f"a worker could not start: {type(error).__name__}: {error}", "")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Makes the shards of a batch.

        Args:
            batch: Column `spec`: `ShardSpec` as JSON.

        Returns:
            Column `report`: `ShardReport` as JSON.
        """
        return {"report": [self._one(ShardSpec.from_json(str(text))).to_json() for text in batch["spec"]]}

    def _one(self, spec: ShardSpec) -> ShardReport:
        import ray

        if self._maker is None:
            return ShardReport(spec.concept, spec.name, len(spec.items), "setup", *self._broken)
        decision, reason = ray.get(self._gate.begin.remote(spec.concept, spec.name))
        if decision != "go":
            failure: Failure = "gave-up" if decision == "give-up" else "stopped"
            return ShardReport(spec.concept, spec.name, len(spec.items), failure, reason)
        # The kernel ends this process if the shard hangs, even inside native code; Ray starts another.
        signal.setitimer(signal.ITIMER_REAL, self._timeout_s)
        try:
            report = replace(make_reported(self._maker, spec), work_s=busy.take_s())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        ray.get(self._gate.end.remote(spec.concept, spec.name))
        return report


class RayPool:
    """Runs shards on the Ray cluster that is initialised.

    Args:
        config: Settings.
        concepts: By name.
        store_url: Storage root.
    """

    def __init__(self, config: RunConfig, concepts: Mapping[str, Concept], store_url: str) -> None:
        import ray

        self._config = config
        self._concepts = dict(concepts)
        self._store_url = store_url
        self._gate: Any = ray.remote(num_cpus=0)(Gate).remote(config.pairs.shard_timeout_s)

    def stop(self, concept: str) -> None:
        """No further shard of this concept is started."""
        self._gate.stop.remote(concept)

    def incidents(self) -> list[Incident]:
        """Shards that were tried again or given up."""
        import ray

        return ray.get(self._gate.incidents.remote())

    def run(self, specs: Sequence[ShardSpec]) -> Generator[ShardReport]:
        """Yields a report for every shard, in the order of completion."""
        import ray

        pairs = self._config.pairs
        with _quiet_context(pairs.shard_timeout_s):
            dataset = ray.data.from_items(
                [{"spec": spec.to_json()} for spec in specs], override_num_blocks=len(specs)
            ).map_batches(
                ShardWorker,
                batch_size=1,
                num_cpus=pairs.worker_cpus,
                num_gpus=pairs.worker_gpus or None,
                compute=ray.data.ActorPoolStrategy(
                    min_size=min(pairs.min_workers, len(specs)),
                    max_size=min(pairs.max_workers, len(specs)),
                    max_tasks_in_flight_per_actor=2,
                ),
                fn_constructor_args=(self._config, self._concepts, self._store_url, self._gate),
            )
            # Closed at once where the caller stops early, so that no actor goes on working.
            rows = cast(Generator[dict[str, Any]], iter(dataset.iter_rows()))
            with closing(rows):
                for row in rows:
                    report = ShardReport.from_json(row["report"])
                    busy.add(report.work_s)
                    yield report


class _quiet_context:
    """Ray Data without bars and plans, and patient enough for slow shards; the caller's settings come back."""

    def __init__(self, shard_timeout_s: float) -> None:
        import ray

        self._context = ray.data.DataContext.get_current()
        self._wanted = {
            "enable_progress_bars": False,
            "print_on_execution_start": False,
            "execution_no_progress_timeout_s": int(2 * shard_timeout_s + _NO_PROGRESS_MARGIN_S),
        }
        self._before: dict[str, Any] = {}
        self._levels: dict[str, int] = {}

    def __enter__(self) -> None:
        for name, value in self._wanted.items():
            self._before[name] = getattr(self._context, name)
            setattr(self._context, name, value)
        # Ray warns that there are no bars.
        for name, level in _LOG_LEVELS.items():
            self._levels[name] = logging.getLogger(name).level
            logging.getLogger(name).setLevel(level)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            setattr(self._context, name, value)
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
