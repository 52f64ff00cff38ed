"""Adapts a base to any number of concepts: one Ray Tune experiment over all their ladders.

Example:
    >>> with ray_session(config.ray), worker_pool(config) as pool:
    ...     results = adapt_concepts(config, store, base_id, concepts, reporter, tracker, pool.serve)
    >>> results["oil"].state, results["oil"].rank_multiplier, results["oil"].metric
    ('done', 2, 0.18)
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.progress import Reporter
from e2gan_cluster.search.jobs import Serve
from e2gan_cluster.search.layer_table import load_layers
from e2gan_cluster.search.layers import ensure_layers
from e2gan_cluster.search.lookup import open_setting, open_tasks
from e2gan_cluster.search.records import ConceptResult, TrialRecord, iter_results
from e2gan_cluster.search.scheduler import ConceptScheduler, ConceptTask
from e2gan_cluster.search.settings import SearchSetting
from e2gan_cluster.search.tracking import log_result, log_trial
from e2gan_cluster.search.warm import Start, assign_donors, start_from_result, write_start
from e2gan_cluster.storage.base import ObjectStore

if TYPE_CHECKING:
    from e2gan_cluster.track.mlflow_tracker import NullTracker, Tracker

TASK = "adapt"


def adapt_pending(config: RunConfig, store: ObjectStore, base_id: str, concepts: Sequence[Concept]) -> list[str]:
    """Names of the concepts that have no finished result under this config."""
    if load_layers(store, base_id) is None:
        return [concept.name for concept in concepts]
    setting = open_setting(config, store, base_id)
    tasks = open_tasks(config, store, setting, concepts)
    return [task.concept.name for task in tasks if task.result is None]


def adapt_concepts(
    config: RunConfig,
    store: ObjectStore,
    base_id: str,
    concepts: Sequence[Concept],
    reporter: Reporter,
    tracker: "Tracker | NullTracker",
    serve: Serve,
    *,
    catalogue: Sequence[Concept] = (),
) -> dict[str, ConceptResult]:
    """Search rank and data size for every concept; finished ones are skipped, killed searches go on.

    On SIGTERM the search stops within seconds and the signal is passed on; everything finished is kept.

    Args:
        config: Resolved config.
        store: Pairs, base and records.
        base_id: Base to adapt.
        concepts: The batch, in order of priority.
        reporter: Gets progress.
        tracker: Gets trials and results.
        serve: Runs the trials, in a pool's workers or in this process; not called if all is done.
        catalogue: More concepts whose finished adapters may be starts (``search.warm_start``).

    Returns:
        One result per concept: ``done``, ``failed`` with a reason, or ``stopped`` (budget).

    Raises:
        UserError: The base is missing or damaged, or its layer analysis failed.
    """
    if not concepts:
        return {}
    ensure_layers(config, store, base_id, concepts, reporter, tracker, serve)
    setting = open_setting(config, store, base_id)
    tasks = open_tasks(config, store, setting, concepts)
    if config.search.warm_start:
        _settle_donors(setting, store, tasks, catalogue)
    watch = _Watch(setting, store, reporter, tracker, tasks)
    scheduler = ConceptScheduler(
        setting,
        store,
        tasks,
        watch,
        may_start=_budget(config.search.max_hours),
        settle_start=lambda task, start: write_start(store, task.concept.name, task.fingerprint, start),
    )
    if any(task.result is None for task in tasks):
        from e2gan_cluster.search.trial import search_runner

        reporter.start(TASK, len(tasks), "concepts")
        reporter.update(TASK, scheduler.ended)
        serve(scheduler, partial(search_runner, setting=setting))
        reporter.finish(TASK, watch.summary())
    return scheduler.results()


def _budget(max_hours: float | None) -> Callable[[], bool]:
    end = None if max_hours is None else time.monotonic() + 3600 * max_hours
    return lambda: end is None or time.monotonic() < end


def _settle_donors(
    setting: SearchSetting, store: ObjectStore, tasks: Sequence[ConceptTask], catalogue: Sequence[Concept]
) -> None:
    """Decide who starts from whom, for all concepts whose start is not settled yet."""
    from e2gan_cluster.text.encoder import PromptEncoder

    config, open_ones = setting.config, [task for task in tasks if task.result is None and task.start is None]
    if not open_ones:
        return
    others = {concept.name: concept for concept in [*catalogue, *(task.concept for task in tasks)]}
    finished = {
        name: max(found, key=lambda result: result.fingerprint)
        for name in others
        if (found := [r for r in iter_results(store, name) if r.base_id == setting.base_id and r.state == "done"])
    }
    encoder = PromptEncoder(max_tokens=config.nets.text_tokens)

    def embed(prompts: Sequence[str]) -> np.ndarray:
        return encoder.encode(prompts).pooled_BD.numpy()

    donors = {name: embed([result.prompt])[0] for name, result in finished.items()}
    names = [task.concept.name for task in open_ones]
    starts = assign_donors(names, embed([task.concept.prompt for task in open_ones]), donors)
    for task in open_ones:
        donor = starts[task.concept.name]
        if donor is not None and donor not in finished:
            task.donor = donor
            continue
        search = config.search
        start = start_from_result(finished[donor], search.rank_multipliers, search.data_sizes) if donor else Start()
        task.start = write_start(store, task.concept.name, task.fingerprint, start)


class _Watch:
    """Passes ends of trials and concepts on to the reporter and the tracker."""

    def __init__(
        self,
        setting: SearchSetting,
        store: ObjectStore,
        reporter: Reporter,
        tracker: "Tracker | NullTracker",
        tasks: Sequence[ConceptTask],
    ) -> None:
        self._setting, self._store, self._reporter, self._tracker = setting, store, reporter, tracker
        self._trials = sum(len(task.records) for task in tasks)
        self._states = {task.concept.name: task.result.state for task in tasks if task.result is not None}
        for task in tasks:
            # A driver killed between a record and its log line left the line out; logging twice changes nothing.
            if task.result is not None and task.result.state == "failed":
                self._tell_end(task.concept, task.result)
            for record in task.records.values():
                self._log_trial(record)

    def trial(self, concept: Concept, record: TrialRecord) -> None:
        """Log a trial."""
        self._trials += 1
        self._log_trial(record)
        facts = {"concept": concept.name, "trial": record.spec.trial_id, "metric": record.metric}
        self._reporter.update(TASK, len(self._states), trials=self._trials, **facts)

    def ended(self, concept: Concept, result: ConceptResult) -> None:
        """Log a concept's result with its pictures and table."""
        self._states[concept.name] = result.state
        self._tell_end(concept, result)
        self._reporter.update(TASK, len(self._states), trials=self._trials, concept=concept.name)

    def summary(self) -> str:
        """One line on how the batch ended."""
        states = list(self._states.values())
        return f"{states.count('done')} adapted, {states.count('failed')} failed, {self._trials} trials"

    def _log_trial(self, record: TrialRecord) -> None:
        search = self._setting.config.search
        log_trial(self._tracker, record, search.metric, self._setting.base_id, search.train.lr)

    def _tell_end(self, concept: Concept, result: ConceptResult) -> None:
        if result.state == "failed":
            self._reporter.note(f"concept {concept.name} failed: {result.failure}")
        log_result(self._tracker, self._store, concept, result)
