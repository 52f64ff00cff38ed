"""Serves a job source with Ray Tune: one experiment, warm workers, no process start per trial.

Ray Tune brings placement, retries of lost workers and reuse of actors; which trial comes next is the source's
decision through a `Searcher`. Tune's own experiment state is not kept: the source's records in the store are what a
killed search is resumed from, on this or another cluster (docs/decisions.md).

Example:
    >>> run_on_tune(source, runner, TuneSettings(num_workers=2))
"""

import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

# Read by Ray Tune when it is imported.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from e2gan_cluster import busy
from e2gan_cluster.search.jobs import Job, JobSource, Runner, run_job, settle
from e2gan_cluster.search.ladder import Wait

LOST_WORKER_RETRIES = 3


@dataclass(frozen=True)
class TuneSettings:
    """Resources of the workers.

    Attributes:
        num_workers: Jobs at once.
        cpus: CPUs per job.
        gpus: GPUs per job; a fraction shares one.
    """

    num_workers: int = 2
    cpus: float = 0.9
    gpus: float = 0.0


class JobTrial(tune.Trainable):
    """A worker: runs one job after the other in the same process."""

    def setup(self, config: dict[str, Any], runner: Runner | None = None) -> None:
        """Start the first job."""
        assert runner is not None
        self._runner = runner
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the next job in this process."""
        self._rows: Iterator[dict[str, Any]] = run_job(Job.from_json(new_config["job"]), self._runner)
        return True

    def step(self) -> dict[str, Any]:
        """Go on to the job's next report."""
        row = next(self._rows, {"failure": "the job ended without an outcome"})
        # As text: Tune flattens nested results.
        return {"row": json.dumps(row), "done": "outcome" in row or "failure" in row, "work_s": busy.take_s()}


class _NotSaved:
    """Tune pickles and copies its settings for a restore of its own, which is not used: the records are the truth."""

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return (object, ())

    def __deepcopy__(self, memo: object) -> "_NotSaved":
        return self


class SourceSearcher(_NotSaved, Searcher):
    """Asks the source for the next job whenever a worker is free.

    Args:
        source: Decides.
        num_workers: Jobs at once.
        should_stop: True = hand out nothing more.
    """

    def __init__(self, source: JobSource, num_workers: int, should_stop: Callable[[], bool]) -> None:
        super().__init__(metric="training_iteration", mode="max")
        self._source = source
        self._num_workers = num_workers
        self._should_stop = should_stop
        self._jobs: dict[str, Job] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next job as a trial config; None = ask again; FINISHED = no more."""
        if self._should_stop():
            return Searcher.FINISHED
        if len(self._jobs) >= self._num_workers:
            return None
        job = self._source.next()
        if job is None:
            return Searcher.FINISHED
        if isinstance(job, Wait):
            return None
        self._jobs[trial_id] = job
        return {"job": job.to_json()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass progress on."""
        if not result.get("done") and trial_id in self._jobs:
            busy.add(float(result.get("work_s", 0.0)))
            settle(self._source, self._jobs[trial_id], json.loads(result["row"]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass the end of a job on."""
        job = self._jobs.pop(trial_id, None)
        if job is None or self._should_stop():
            return
        busy.add(float((result or {}).get("work_s", 0.0)))
        row: dict[str, Any] = json.loads((result or {}).get("row", "{}"))
        if error or not ({"outcome", "failure"} & set(row)):
            row = {"failure": f"the worker was lost {LOST_WORKER_RETRIES + 1} times (killed, or out of memory)"}
        settle(self._source, job, row)


class _KeepStarting(FIFOScheduler):
    """Lets a free worker take the next job.

    Tune's own choice is the oldest waiting job, even where its worker is just starting: the free worker is given to it
    and the starting one is thrown away, so that with jobs shorter than a start one worker does all the work.
    """

    def choose_trial_to_run(self, tune_controller: object) -> None:
        return None


class _StopAll(_NotSaved, Stopper):
    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._should_stop()


def run_on_tune(source: JobSource, runner: Runner, settings: TuneSettings, stop: threading.Event | None = None) -> None:
    """Serve a source until it has no more jobs, on the Ray this process is connected to.

    Args:
        source: Hands out jobs.
        runner: Runs them in the workers; picklable. What it keeps in module globals stays warm between jobs.
        settings: Resources.
        stop: Set = stop within seconds, running jobs are dropped.
    """
    stop = stop or threading.Event()
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # Tune's own value is 1: workers then start one after the other.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(settings.num_workers)
    trainable = tune.with_resources(
        tune.with_parameters(JobTrial, runner=runner),
        tune.PlacementGroupFactory([{"CPU": settings.cpus, **({"GPU": settings.gpus} if settings.gpus else {})}]),
    )
    with tempfile.TemporaryDirectory(prefix="e2gan-tune-") as folder:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=SourceSearcher(source, settings.num_workers, stop.is_set),
                scheduler=_KeepStarting(),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                verbose=0,
                stop=_StopAll(stop.is_set),
                failure_config=tune.FailureConfig(max_failures=LOST_WORKER_RETRIES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        )
        tuner.fit()
