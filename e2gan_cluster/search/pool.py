"""Workers that stay: one Ray Tune experiment that serves one job source after the other.

A worker's start (process, torch, networks) takes seconds; layer analysis, searches and exports of a run share the same
workers. Between two sources, and while a source can hand out nothing, workers nap: Tune ends all but one that is
without a job.

Example:
    >>> with worker_pool(config) as pool:
    ...     pool.serve(probes, probe_runner)
    ...     pool.serve(scheduler, search_runner)
"""

import base64
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from types import TracebackType
from typing import Any

from ray import cloudpickle

from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import TrainingError
from e2gan_cluster.search.jobs import Job, JobSource, Runner, stop_on_signals
from e2gan_cluster.search.ladder import Wait
from e2gan_cluster.search.tune_loop import TuneSettings, run_on_tune

_NAP_S = 0.25
_LONG_NAP_S = 5.0
_NAP_SHARE = 0.05
"""A nap lasts this share of the time that nothing was to do: a long wait costs few trials, a short one no time."""

_POLL_S = 0.1
_CLOSE_S = 30.0


def worker_pool(config: RunConfig, prepare: Callable[[], None] | None = None) -> "WorkerPool":
    """The workers that a config asks for."""
    search = config.search
    return WorkerPool(TuneSettings(search.num_workers, search.worker_cpus, search.worker_gpus), prepare)


class WorkerPool:
    """Workers on the Ray this process is connected to; used by one thread at a time.

    Args:
        settings: Their number and resources.
        prepare: Called once in each worker that has nothing else to do; picklable. It may fail: jobs meet the same.
    """

    def __init__(self, settings: TuneSettings, prepare: Callable[[], None] | None = None) -> None:
        self._settings = settings
        self._feed = _Feed(prepare)
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="worker-pool", daemon=True)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Let the workers start now; without it they start with the first source."""
        if self._thread.ident is None:
            self._thread.start()

    def serve(self, source: JobSource, runner: Runner) -> None:
        """Run a source's jobs until it has no more.

        On SIGTERM or Ctrl-C running jobs are dropped within seconds, the pool is closed, and the former handler gets
        the signal.

        Args:
            source: Hands out jobs; called from the pool's thread while this one waits.
            runner: Runs them; picklable. What it keeps in module globals stays warm between jobs and sources.

        Raises:
            TrainingError: The workers ended, for example since Ray did.
            Exception: What the source itself raised, for example storage that fails.
        """
        with stop_on_signals() as stop:
            self.start()
            done = self._feed.begin(source, runner)
            while not (done.wait(_POLL_S) or stop.is_set() or self._ended.is_set()):
                pass
            if stop.is_set():
                self.close()
                return
        if self._feed.failure is not None:
            raise self._feed.failure
        if not done.is_set():
            raise TrainingError(
                f"the workers ended before their work was done: {self._failure}",
                "run the same command again: what is finished stays finished",
            ) from self._failure

    def close(self) -> None:
        """End the workers; waits until they are gone."""
        self._feed.close()
        self._stop.set()
        if self._thread.ident is not None:
            self._ended.wait(_CLOSE_S)

    def _run(self) -> None:
        try:
            run_on_tune(self._feed, run_pooled, self._settings, self._stop)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._failure = error
        finally:
            self._ended.set()


class _Feed:
    """A `JobSource` that hands out the jobs of one source after the other, and naps.

    Attributes:
        failure: What the last source raised; Tune would take it for a failure of a trial.
    """

    def __init__(self, prepare: Callable[[], None] | None) -> None:
        self._prepare = _dump(prepare)
        self._lock = threading.RLock()
        self._closed = False
        self._source: JobSource | None = None
        self._runner = ""
        self._done = threading.Event()
        self.failure: Exception | None = None
        self._running: dict[int, Job] = {}
        self._count = 0
        self._idle_since = time.monotonic()

    def begin(self, source: JobSource, runner: Runner) -> threading.Event:
        """Hand out the jobs of a source from now on; the event is set when all have ended."""
        with self._lock:
            self._source, self._done, self.failure = source, threading.Event(), None
            self._runner = _dump(runner)
            return self._done

    def close(self) -> None:
        """Hand out nothing more."""
        with self._lock:
            self._closed = True

    def next(self) -> Job | Wait | None:
        """The source's next job in a wrapping that says how to run it, or a nap."""
        with self._lock:
            if self._closed:
                return None
            job: Job | Wait | None = Wait()
            with self._source_failures():
                job = self._source.next() if self._source is not None else Wait()
            if isinstance(job, Job):
                self._count += 1
                self._running[self._count] = job
                self._idle_since = time.monotonic()
                return Job(job.name, {"number": self._count, "runner": self._runner, "payload": job.payload})
            if job is None and not self._running:
                self._end()
            return self._nap()

    def progress(self, job: Job, row: Mapping[str, Any]) -> None:
        """Pass progress on."""
        with self._lock, self._source_failures():
            inner = self._running.get(job.payload.get("number", 0))
            if inner is not None and self._source is not None:
                self._source.progress(inner, row)

    def report(self, job: Job, outcome: Mapping[str, Any]) -> None:
        """Pass an outcome on."""
        with self._lock, self._source_failures():
            inner = self._running.pop(job.payload.get("number", 0), None)
            if inner is not None and self._source is not None:
                self._source.report(inner, outcome)

    def fail(self, job: Job, reason: str) -> None:
        """Pass a failure on."""
        with self._lock, self._source_failures():
            inner = self._running.pop(job.payload.get("number", 0), None)
            if inner is not None and self._source is not None:
                self._source.fail(inner, reason)

    @contextmanager
    def _source_failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            self.failure = error
            self._end()

    def _end(self) -> None:
        """No more of this source; what still runs of it is ignored."""
        self._source = None
        self._running.clear()
        self._done.set()

    def _nap(self) -> Job:
        seconds = _NAP_SHARE * (time.monotonic() - self._idle_since)
        return Job("nap", {"nap_s": min(max(seconds, _NAP_S), _LONG_NAP_S), "prepare": self._prepare})


def run_pooled(job: Job) -> Iterator[Mapping[str, Any]]:
    """Runs a job of any source, or naps (see `jobs.Runner`)."""
    if "nap_s" in job.payload:
        _prepare_once(job.payload["prepare"])
        time.sleep(job.payload["nap_s"])
        yield {"outcome": {}}
        return
    yield from _load(job.payload["runner"])(Job(job.name, job.payload["payload"]))


@lru_cache(maxsize=1)
def _prepare_once(text: str) -> None:
    prepare = _load(text)
    if prepare is not None:
        with suppress(Exception):
            prepare()


def _dump(function: Callable[..., Any] | None) -> str:
    # Every trial keeps a copy of it for the life of the experiment.
    return base64.b64encode(zlib.compress(cloudpickle.dumps(function))).decode()  # pyright: ignore[reportPrivateImportUsage]


@lru_cache(maxsize=4)
def _load(text: str) -> Any:
    return cloudpickle.loads(zlib.decompress(base64.b64decode(text)))
