"""Work for trial workers: what is asked, what comes back, and running it without Ray.

A source hands out jobs and takes in outcomes; the Tune driver and `run_local` serve any source. Jobs and outcomes
are plain JSON, so a driver needs none of the worker's libraries.

Example:
    >>> run_local(source, runner)   # the same source and runner as on Ray, one job after the other
"""

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from e2gan_cluster.search.ladder import Wait


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        name: For people: concept and trial.
        payload: JSON-able; all that the runner gets.
    """

    name: str
    payload: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """JSON form."""
        return json.dumps({"name": self.name, "payload": self.payload}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """Inverse of `to_json`."""
        return cls(**json.loads(text))


Runner = Callable[[Job], Iterator[Mapping[str, Any]]]
"""Runs a job: yields progress as ``{"images": ...}`` and last ``{"outcome": {...}}``."""


class JobSource(Protocol):
    """Where jobs come from."""

    def next(self) -> Job | Wait | None:
        """The next job; `Wait` while nothing can start before a running job ends; None when nothing more will start."""
        ...

    def progress(self, job: Job, row: Mapping[str, Any]) -> None:
        """A running job is alive."""
        ...

    def report(self, job: Job, outcome: Mapping[str, Any]) -> None:
        """A job ended as it should."""
        ...

    def fail(self, job: Job, reason: str) -> None:
        """A job ended with an error."""
        ...


def reason_of(error: BaseException) -> str:
    """One paragraph on why a job failed, for its concept's record."""
    from e2gan_cluster.errors import UserError

    if isinstance(error, UserError):
        return str(error)
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error):
        return f"out of memory ({text})\n  fix: lower search.train.batch_size or raise search.train.accumulate"
    return text


def run_job(job: Job, runner: Runner) -> Iterator[dict[str, Any]]:
    """Run a job to its end; an exception becomes a last row ``{"failure": reason}``."""
    try:
        for row in runner(job):
            yield dict(row)
    except Exception as error:  # noqa: BLE001 - one bad job must not stop the others; its reason is recorded
        yield {"failure": reason_of(error)}


def settle(source: JobSource, job: Job, row: Mapping[str, Any]) -> bool:
    """Pass one row of `run_job` on to the source.

    Returns:
        True if it was the last.
    """
    if "failure" in row:
        source.fail(job, str(row["failure"]))
        return True
    if "outcome" in row:
        source.report(job, row["outcome"])
        return True
    source.progress(job, row)
    return False


def run_local(source: JobSource, runner: Runner, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Serve a source in this process, one job at a time."""
    while not should_stop():
        job = source.next()
        if job is None:
            return
        assert isinstance(job, Job), "nothing runs, so nothing can be waited for"
        for row in run_job(job, runner):
            if settle(source, job, row) or should_stop():
                break


Serve = Callable[[JobSource, Runner], None]
"""Runs all jobs of a source: `WorkerPool.serve` on Ray, or `serve_here`."""


def serve_here(source: JobSource, runner: Runner) -> None:
    """Serve a source in this process; SIGTERM or Ctrl-C stops at the running job's next report."""
    with stop_on_signals() as stop:
        run_local(source, runner, stop.is_set)


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Within the block SIGTERM or Ctrl-C sets the event; at its end the former handler gets the signal."""
    event, received = threading.Event(), []
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handler(number: int, frame: object) -> None:
        received.append(number)
        event.set()

    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    for number in received[:1]:
        signal.raise_signal(number)
