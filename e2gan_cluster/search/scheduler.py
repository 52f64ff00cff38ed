"""All concepts of a batch: which trial of which concept runs next. No Ray, no torch.

Concepts are climbed in their order; a concept that must wait for its own trial leaves the workers to the next one, so
none idles. Every decision follows from the concept's own records, so a killed search, resumed, ends with the same
picks.

Example:
    >>> scheduler = ConceptScheduler(setting, store, tasks, watch)
    >>> run_local(scheduler, partial(search_runner, setting=setting))
    >>> scheduler.results()["oil"].state
    'done'
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from e2gan_cluster.concepts import Concept
from e2gan_cluster.search.jobs import Job
from e2gan_cluster.search.ladder import ConceptLadder, Done, LadderRules, Wait
from e2gan_cluster.search.records import ConceptResult, TrialRecord, TrialSpec
from e2gan_cluster.search.settings import SearchSetting, concept_to_json
from e2gan_cluster.search.warm import Start, start_from_result
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore

FAILURE = "failure.json"


class Watch(Protocol):
    """Who is told what happens."""

    def trial(self, concept: Concept, record: TrialRecord) -> None:
        """A trial ended."""
        ...

    def ended(self, concept: Concept, result: ConceptResult) -> None:
        """A concept is done or failed."""
        ...


@dataclass
class ConceptTask:
    """One concept of the batch.

    Attributes:
        concept: The edit.
        fingerprint: Of its search; empty if it cannot be searched.
        available: Training pairs it has.
        start: Where its search starts; None = to be settled when its donor has ended.
        donor: Concept of this batch it waits for.
        records: Trials finished in earlier runs.
        result: Its end, if it ended in an earlier run or cannot be searched.
    """

    concept: Concept
    fingerprint: str = ""
    available: int = 0
    start: Start | None = field(default_factory=Start)
    donor: str | None = None
    records: Mapping[str, TrialRecord] = field(default_factory=dict)
    result: ConceptResult | None = None


class ConceptScheduler:
    """A `JobSource` over many ladders.

    Args:
        setting: The search.
        store: Where failures are noted.
        tasks: The batch, in order.
        watch: Told of every end.
        may_start: False = the budget is used up, no new trial starts.
        settle_start: Makes a concept's start final and durable.
    """

    def __init__(
        self,
        setting: SearchSetting,
        store: ObjectStore,
        tasks: Sequence[ConceptTask],
        watch: Watch,
        may_start: Callable[[], bool] = lambda: True,
        settle_start: Callable[[ConceptTask, Start], Start] = lambda task, start: start,
    ) -> None:
        self._setting, self._store, self._watch = setting, store, watch
        self._may_start, self._settle_start = may_start, settle_start
        self._tasks = {task.concept.name: task for task in tasks}
        self._ladders: dict[str, ConceptLadder] = {}
        self._results = {name: task.result for name, task in self._tasks.items() if task.result is not None}
        self._finishing: set[str] = set()
        # Open concepts in order; an ended one is taken out, so a long batch stays quick.
        self._open = [name for name in self._tasks if name not in self._results]

    @property
    def ended(self) -> int:
        """Concepts that are done or failed."""
        return len(self._results)

    def next(self) -> Job | Wait | None:
        """The first job that can start, in the order of concepts."""
        if not self._open or not self._may_start():
            return None
        for name in list(self._open):
            job = self._next_of(self._tasks[name])
            if job is not None:
                return job
        return Wait() if self._open else None

    def progress(self, job: Job, row: Mapping[str, Any]) -> None:
        """Nothing to decide."""

    def report(self, job: Job, outcome: Mapping[str, Any]) -> None:
        """Take in a finished trial or a concept's result."""
        task = self._tasks[job.payload["concept"]["name"]]
        if task.concept.name in self._results:
            return
        if "result" in outcome:
            self._end(task, ConceptResult.parse(outcome["result"].encode()))
            return
        record = TrialRecord.parse(outcome["record"].encode())
        self._ladders[task.concept.name].report(record)
        self._watch.trial(task.concept, record)

    def fail(self, job: Job, reason: str) -> None:
        """One concept fails; the others go on."""
        task = self._tasks[job.payload["concept"]["name"]]
        if task.concept.name not in self._results:
            self._fail(task, f"{TrialSpec.from_dict(job.payload['spec']).trial_id}: {reason}")

    def results(self) -> dict[str, ConceptResult]:
        """One result per concept; those neither done nor failed are ``stopped``."""
        return {name: self._results.get(name) or self._stopped(task) for name, task in self._tasks.items()}

    def _next_of(self, task: ConceptTask) -> Job | None:
        name = task.concept.name
        ladder = self._ladders.get(name) or self._begin(task)
        if ladder is None or name in self._finishing:
            return None
        step = ladder.next()
        if isinstance(step, Wait):
            return None
        if isinstance(step, Done):
            self._finishing.add(name)
            return self._job(task, TrialSpec(name, final=True), pick=step.trial_id)
        return self._job(task, step)

    def _begin(self, task: ConceptTask) -> ConceptLadder | None:
        """The concept's ladder, with the trials of earlier runs replayed; None while its donor is searched for."""
        name = task.concept.name
        if task.start is None:
            donor = self._results.get(task.donor or "")
            if donor is None and task.donor in self._tasks:
                return None
            search = self._setting.config.search
            start = Start()
            if donor is not None and donor.state == "done":
                start = start_from_result(donor, search.rank_multipliers, search.data_sizes)
            task.start = self._settle_start(task, start)
        skip = (task.start.rank_rung, task.start.data_rung)
        try:
            rules = LadderRules.of(self._setting.config.search, task.available, skip)
        except ValueError as error:
            self._fail(task, f"no rung to try: {error}")
            return None
        ladder = ConceptLadder(name, rules, task.start.prefix or None)
        for record in task.records.values():
            ladder.report(record)
        self._ladders[name] = ladder
        return ladder

    def _job(self, task: ConceptTask, spec: TrialSpec, **extra: str) -> Job:
        payload = {
            "spec": spec.to_dict(),
            "concept": concept_to_json(task.concept),
            "fingerprint": task.fingerprint,
            **extra,
        }
        return Job(f"{task.concept.name} {spec.trial_id}", payload)

    def _end(self, task: ConceptTask, result: ConceptResult) -> None:
        name = task.concept.name
        self._results[name] = result
        self._open.remove(name)
        self._ladders.pop(name, None)
        self._watch.ended(task.concept, result)

    def _fail(self, task: ConceptTask, reason: str) -> None:
        result = failed_result(task, self._setting.base_id, reason)
        if task.fingerprint:
            key = keys.search_file(task.concept.name, task.fingerprint, FAILURE)
            self._store.put(key, json.dumps({"reason": reason}).encode())
        self._end(task, result)

    def _stopped(self, task: ConceptTask) -> ConceptResult:
        ladder = self._ladders.get(task.concept.name)
        records = list((ladder.records if ladder else task.records).values())
        return ConceptResult(
            task.concept.name,
            "stopped",
            prompt=task.concept.prompt,
            base_id=self._setting.base_id,
            fingerprint=task.fingerprint,
            trials=len(records),
            seconds=sum(record.seconds for record in records),
            images=sum(record.images for record in records),
            failure="stopped before its end: the same command goes on",
        )


def failed_result(task: ConceptTask, base_id: str, reason: str) -> ConceptResult:
    """The result of a concept that failed."""
    return ConceptResult(
        task.concept.name,
        "failed",
        prompt=task.concept.prompt,
        base_id=base_id,
        fingerprint=task.fingerprint,
        failure=reason,
    )
