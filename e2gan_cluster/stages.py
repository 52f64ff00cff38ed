"""The whole chain: pairs, base, layers, adapt, publish, report. Each stage reads what the one before finished.

The same command again resumes: every stage finds finished work by its done-marker. Ray is started only if a
stage has work left.

Example: ``e2gan run --config configs/demo.yaml``
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from e2gan_cluster import busy, errors
from e2gan_cluster.ahead import ImportAhead
from e2gan_cluster.batch import Batch
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import UserError
from e2gan_cluster.progress import Reporter
from e2gan_cluster.ray_runtime import ray_session
from e2gan_cluster.storage import keys

if TYPE_CHECKING:
    from e2gan_cluster.search.jobs import JobSource, Runner
    from e2gan_cluster.search.pool import WorkerPool
    from e2gan_cluster.search.records import ConceptResult
    from e2gan_cluster.track.mlflow_tracker import NullTracker, Tracker

Stage = Literal["pairs", "base", "layers", "adapt", "publish", "report"]
_MODULES: dict[Stage, tuple[str, ...]] = {
    "base": ("torch", "ray.train.torch", "e2gan_cluster.train.base_driver"),
    "layers": (
        "transformers.modeling_utils", "e2gan_cluster.nn.lora", "e2gan_cluster.search.layers",
        "e2gan_cluster.search.pool", "e2gan_cluster.search.worker",
    ),
    "publish": ("onnxruntime", "torch.onnx", "e2gan_cluster.export.base_files"),
}  # fmt: skip
"""What stages import in this process that takes seconds; in parts, since a stop waits for the one under way."""
STAGES: tuple[Stage, ...] = ("pairs", "base", "layers", "adapt", "publish", "report")


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        done: New concepts that are adapted (and published, where that stage ran).
        failed: Concept -> reason.
        stages: Stage -> record with `state`, `seconds`, `started_at`, and `busy_s`: the part of `seconds` that its
            workers spent on edits, training and measuring, were all of them busy at once.
        base_id: Base in use, once there is one.
        versions: Concept -> published version.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    base_id: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 all done, 1 nothing done, 3 some concepts failed."""
        if not self.failed:
            return errors.EXIT_OK
        return errors.EXIT_SOME_FAILED if self.done else errors.EXIT_NOTHING_DONE

    def outside(self, elapsed_s: float) -> dict[str, float]:
        """Seconds beside edits, training and measuring, by stage, and what of ``elapsed_s`` was spent before them.

        A stage's seconds in which only some of its workers had something to do count in part.
        """
        seconds = {name: float(record["seconds"]) for name, record in self.stages.items() if "seconds" in record}
        busy_s = {name: float(self.stages[name].get("busy_s", 0.0)) for name in seconds}
        start_s = max(0.0, elapsed_s - sum(seconds.values()))
        return {"start": start_s} | {name: seconds[name] - busy_s[name] for name in seconds}


@dataclass
class _Run:
    """One run under way: what the stages share."""

    batch: Batch
    reporter: Reporter
    tracker: "Tracker | NullTracker"
    outcome: Outcome
    stack: ExitStack
    stages: Sequence[Stage]
    ahead: ImportAhead
    base_files: Callable[[], None] | None = None
    pool: "WorkerPool | None" = None

    def need_ray(self) -> None:
        """Start or join Ray, once, for the rest of the run."""
        self.stack.enter_context(ray_session(self.batch.config.ray))
        self.ahead.allow("base")

    def serve(self, source: "JobSource", runner: "Runner") -> None:
        """Run a source's jobs in workers that stay for the rest of the run."""
        self.workers().serve(source, runner)

    def workers(self) -> "WorkerPool":
        """Workers of layer analysis, searches and exports."""
        from e2gan_cluster.search.pool import worker_pool
        from e2gan_cluster.search.worker import prepare_worker

        if self.pool is None:
            self.need_ray()
            batch = self.batch
            concept = next(iter(self.alive() or batch.base))
            prepare = partial(prepare_worker, batch.config, batch.store.url, concept)
            self.pool = self.stack.enter_context(worker_pool(batch.config, prepare))
        return self.pool

    def alive(self) -> list[Any]:
        """New concepts that have not failed."""
        return [concept for concept in self.batch.new if concept.name not in self.outcome.failed]


def run_stages(
    batch: Batch, reporter: Reporter, tracker: "Tracker | NullTracker", stages: Sequence[Stage] = STAGES
) -> Outcome:
    """Run stages in order and keep their records.

    Args:
        batch: Config, storage and concepts.
        reporter: Gets progress.
        tracker: MLflow, or a tracker that drops everything.
        stages: Which; always run in the order of `STAGES`.

    Raises:
        UserError: A stage cannot go on for any concept. What is finished stays finished.
    """
    outcome = Outcome()
    work: dict[Stage, Callable[[_Run], None]] = {
        "pairs": _pairs, "base": _base, "layers": _layers, "adapt": _adapt, "publish": _publish, "report": _report,
    }  # fmt: skip
    with ExitStack() as stack:
        ahead = ImportAhead({stage: _MODULES[stage] for stage in STAGES if stage in stages and stage in _MODULES})
        stack.callback(ahead.close)
        run = _Run(batch, reporter, tracker, outcome, stack, stages, ahead)
        for stage in STAGES:
            if stage in stages:
                _timed(run, stage, work[stage])
    return outcome


def _timed(run: _Run, stage: Stage, work: Callable[[_Run], None]) -> None:
    record = {"state": "running", "started_at": datetime.now(UTC).isoformat(timespec="seconds")}
    start, busy_start_s = time.monotonic(), busy.total_s()
    _record(run, stage, record)
    try:
        run.ahead.wait(stage)
        work(run)
    except BaseException as error:
        reason = str(error).splitlines()[0] if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        state = "stopped" if isinstance(error, SystemExit | KeyboardInterrupt) else "failed"
        _record(run, stage, {**record, "state": state, "reason": reason, "seconds": time.monotonic() - start})
        raise
    seconds = time.monotonic() - start
    busy_s = min(seconds, (busy.total_s() - busy_start_s) / _workers(run.batch.config, stage))
    _record(run, stage, {**record, "state": "done", "seconds": seconds, "busy_s": busy_s})


def _workers(config: RunConfig, stage: Stage) -> int:
    """Workers that a stage keeps busy at once; those of the base work on the same steps."""
    if stage == "pairs":
        return config.pairs.max_workers
    return config.search.num_workers if stage in ("layers", "adapt", "publish") else 1


def _record(run: _Run, stage: Stage, record: dict[str, Any]) -> None:
    """Keep the longest time a stage took: a later run that finds it finished says nothing about its cost."""
    key = keys.run_status(run.batch.fingerprint, "stages.json")
    try:
        stages: dict[str, Any] = json.loads(run.batch.store.get(key))
    except KeyError:
        stages = {}
    before = stages.get(stage, {})
    if record.get("state") == "done" and before.get("work_s", 0.0) > record["seconds"]:
        record = {**record, "work_s": before["work_s"]}
    elif "seconds" in record:
        record = {
            **record,
            "work_s": record["seconds"] + (before.get("work_s", 0.0) if before.get("state") != "done" else 0.0),
        }
    else:
        record = {**record, "work_s": before.get("work_s", 0.0)}
    stages[stage] = record
    run.outcome.stages[stage] = record
    run.batch.store.put(key, json.dumps(stages, indent=1).encode())


def _pairs(run: _Run) -> None:
    from e2gan_cluster.pairs.generate import generate_pairs, pairs_pending

    batch = run.batch
    if pairs_pending(batch.config, batch.store, batch.concepts):
        run.need_ray()
    results = generate_pairs(batch.config, batch.store, batch.concepts, run.reporter, tracker=run.tracker)
    stage_run = run.tracker.stage_run("pairs")
    for name, result in results.items():
        counts = {f"{name}/train": float(result.train_ok), f"{name}/heldout": float(result.heldout_ok)}
        run.tracker.log(stage_run, {}, counts, None)
        if result.failure:
            run.outcome.failed[name] = f"pairs: {result.failure}"
            run.reporter.note(f"concept {name} failed: {result.failure}")
    if not [concept for concept in batch.concepts if concept.name not in run.outcome.failed]:
        raise UserError(
            "no concept has usable pairs",
            "see the reasons above and the filter counts in pairs/<concept>/status.json",
        )


def _base(run: _Run) -> None:
    from e2gan_cluster.train.base_driver import base_done, pretrain_base

    batch = run.batch
    concepts = [concept for concept in batch.base if concept.name not in run.outcome.failed]
    if not concepts:
        raise UserError("no base concept has usable pairs", "choose others in concepts.base")
    run.outcome.base_id = base_done(batch.config, batch.store, concepts)
    if run.outcome.base_id is None:
        run.need_ray()
        run.outcome.base_id = pretrain_base(
            batch.config, batch.store, concepts, run.reporter, run.tracker, on_begun=partial(_prepare_search, run)
        )
    run.reporter.note(f"base {run.outcome.base_id}", base_id=run.outcome.base_id)


def _prepare_search(run: _Run) -> None:
    """Start what comes after the base while it trains: a training on few cores leaves others idle."""
    if {"layers", "adapt"} & set(run.stages) and _room_beside_base(run.batch.config):
        run.ahead.allow("layers")
        run.ahead.wait("layers")
        run.workers().start()
    run.ahead.allow("publish")


def _room_beside_base(config: RunConfig) -> bool:
    """Whether the workers of the stages after it can start while the base trains.

    Only on a Ray of this machine, where waiting workers cost nothing, and only if both fit at once: a base worker that
    is lost must find its place again.
    """
    import ray

    if config.ray.address or "RAY_ADDRESS" in os.environ:
        return False
    base, search, there = config.base, config.search, ray.cluster_resources()
    cpus = base.num_workers * base.worker_cpus + search.num_workers * search.worker_cpus
    gpus = base.num_workers * base.worker_gpus + search.num_workers * search.worker_gpus
    return cpus <= there.get("CPU", 0.0) and gpus <= there.get("GPU", 0.0)


def _base_id(run: _Run) -> str:
    """The base of this batch, for stages run without the base stage before them."""
    from e2gan_cluster.train.base_driver import base_done

    batch = run.batch
    concepts = [concept for concept in batch.base if concept.name not in run.outcome.failed]
    base_id = run.outcome.base_id or base_done(batch.config, batch.store, concepts)
    if base_id is None:
        raise UserError("this batch has no trained base yet", "run `e2gan run --stage base` or `e2gan base` first")
    run.outcome.base_id = base_id
    return base_id


def _layers(run: _Run) -> None:
    from e2gan_cluster.search.layers import ensure_layers

    batch, base_id = run.batch, _base_id(run)
    concepts = run.alive() or batch.base
    ensure_layers(batch.config, batch.store, base_id, concepts, run.reporter, run.tracker, run.serve)


def _adapt(run: _Run) -> None:
    from e2gan_cluster.search.adapt import adapt_concepts, adapt_pending
    from e2gan_cluster.search.layer_table import load_layers

    batch = run.batch
    base_id = _base_id(run)
    exports = "publish" in run.stages and load_layers(batch.store, base_id) is not None
    if exports and adapt_pending(batch.config, batch.store, base_id, run.alive()):
        from e2gan_cluster.publish import begin_base_files

        run.need_ray()
        run.base_files = begin_base_files(batch.config, batch.store, base_id)
    results = adapt_concepts(batch.config, batch.store, base_id, run.alive(), run.reporter, run.tracker, run.serve)
    for name, result in results.items():
        if result.state == "done":
            run.outcome.done.append(name)
        else:
            run.outcome.failed[name] = f"adapt: {result.failure or result.state}"


def _publish(run: _Run) -> None:
    from e2gan_cluster.publish import publish_batch

    base_id, results = _base_id(run), _results(run)
    for concept in run.alive():
        if concept.name not in results:
            run.outcome.failed[concept.name] = "publish: its search has not finished"
    if run.base_files is not None:
        run.base_files()
    versions, failed = publish_batch(run.batch, base_id, results, run.reporter, run.serve)
    run.outcome.versions.update(versions)
    run.outcome.failed |= {name: f"publish: {reason}" for name, reason in failed.items()}
    run.outcome.done = sorted(versions)


def _results(run: _Run) -> dict[str, "ConceptResult"]:
    """Finished searches of the concepts that have not failed."""
    from e2gan_cluster.search.lookup import find_result

    batch, base_id = run.batch, _base_id(run)
    found = {concept.name: find_result(batch.config, batch.store, base_id, concept) for concept in run.alive()}
    return {name: result for name, result in found.items() if result is not None and result.state == "done"}


def _report(run: _Run) -> None:
    from e2gan_cluster.overview import write_overview
    from e2gan_cluster.track.report import write_report

    batch = run.batch
    key = keys.run_status(batch.fingerprint, "failures.json")
    batch.store.put(key, json.dumps(run.outcome.failed, indent=1, sort_keys=True).encode())
    write_overview(batch, _results(run))
    write_report(batch.config, batch.store, run.tracker)
