"""One way to tell a person, a log file or a program how far the work is.

On a terminal: bars. Without one: a plain line every few seconds. With ``--log-format json``: JSON lines on standard
output.

Example:
    reporter = make_reporter("auto")
    reporter.start("pairs oil-painting", total=512, unit="photos")
    reporter.update("pairs oil-painting", 128, loss=0.12)
    reporter.finish("pairs oil-painting", "512 pairs")
"""

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from e2gan_cluster.redact import redact

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LogFormat = Literal["auto", "plain", "json"]


class Reporter(Protocol):
    """Where progress goes. Tasks are named; calls may come from any thread."""

    def start(self, task: str, total: int, unit: str) -> None:
        """A task of ``total`` units begins."""
        ...

    def update(self, task: str, done: int, **facts: object) -> None:
        """``done`` units of the task are finished; facts such as ``loss=0.1`` are shown beside it."""
        ...

    def finish(self, task: str, message: str = "") -> None:
        """The task ended; the message says with what."""
        ...

    def note(self, message: str, **facts: object) -> None:
        """One line that belongs to no task."""
        ...


class SilentReporter:
    """Says nothing; for tests and library use."""

    def start(self, task: str, total: int, unit: str) -> None:
        """Ignore."""

    def update(self, task: str, done: int, **facts: object) -> None:
        """Ignore."""

    def finish(self, task: str, message: str = "") -> None:
        """Ignore."""

    def note(self, message: str, **facts: object) -> None:
        """Ignore."""


def make_reporter(log_format: LogFormat = "auto") -> Reporter:
    """A reporter for this process.

    Args:
        log_format: ``auto``: bars if standard error is a terminal, else plain lines on it; ``json``: JSON lines on
            standard output.
    """
    if log_format == "json":
        return LineReporter(sys.stdout, _json_line)
    if log_format == "auto" and sys.stderr.isatty():
        return BarReporter()
    return LineReporter(sys.stderr, _plain_line)


@dataclass
class _Task:
    total: int
    unit: str
    began_s: float
    printed_s: float
    # Speed counts from the first update: a resumed task starts above zero, and that part was not done now.
    from_s: float
    from_done: int | None = None


class LineReporter:
    """Prints one line per event, and for updates at most one every ``every_s`` per task.

    Args:
        stream: Where lines go.
        format_line: Turns an event into a line.
        every_s: Seconds between two update lines of a task.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        stream: IO[str],
        format_line: Callable[[Mapping[str, Any]], str],
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._format, self._every_s, self._clock = stream, format_line, every_s, clock
        self._tasks: dict[str, _Task] = {}
        self._lock = threading.Lock()

    def start(self, task: str, total: int, unit: str) -> None:
        """A task of ``total`` units begins."""
        with self._lock:
            now_s = self._clock()
            self._tasks[task] = _Task(total, unit, now_s, now_s, now_s)
            self._print({"event": "start", "task": task, "total": total, "unit": unit})

    def update(self, task: str, done: int, **facts: object) -> None:
        """Print where the task is, unless it was printed a moment ago."""
        with self._lock:
            now_s = self._clock()
            state = self._tasks.setdefault(task, _Task(0, "", now_s, now_s, now_s))
            if state.from_done is None:
                state.from_done, state.from_s = done, now_s
            if now_s - state.printed_s < self._every_s and done != state.total:
                return
            state.printed_s = now_s
            event = {"event": "update", "task": task, "done": done, "total": state.total, "unit": state.unit}
            elapsed_s, new = now_s - state.from_s, done - state.from_done
            if elapsed_s > 0 and new > 0:
                event["per_second"] = new / elapsed_s
                event["eta_s"] = max(0.0, (state.total - done) * elapsed_s / new)
            self._print(event | {"facts": facts})

    def finish(self, task: str, message: str = "") -> None:
        """Print that the task ended, with its time."""
        with self._lock:
            now_s = self._clock()
            state = self._tasks.pop(task, None)
            elapsed_s = now_s - state.began_s if state else 0.0
            self._print({"event": "finish", "task": task, "message": message, "elapsed_s": elapsed_s})

    def note(self, message: str, **facts: object) -> None:
        """Print one line."""
        with self._lock:
            self._print({"event": "note", "message": message, "facts": facts})

    def _print(self, event: Mapping[str, Any]) -> None:
        print(redact(self._format(event)), file=self._stream, flush=True)


class BarReporter:
    """Progress bars on a terminal."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._ids: dict[str, TaskID] = {}
        self._lock = threading.RLock()

    def start(self, task: str, total: int, unit: str) -> None:
        """Show a bar."""
        with self._lock:
            self._ids[task] = self._bars().add_task(task, total=total, unit=unit, facts="")

    def update(self, task: str, done: int, **facts: object) -> None:
        """Move the bar."""
        with self._lock:
            if task in self._ids:
                self._bars().update(self._ids[task], completed=done, facts=redact(format_facts(facts)))

    def finish(self, task: str, message: str = "") -> None:
        """Replace the bar by a line."""
        with self._lock:
            bars = self._bars()
            if task in self._ids:
                bars.remove_task(self._ids.pop(task))
            bars.console.print(redact(f"{task}  {message or 'done'}"), markup=False, highlight=False)
            if not self._ids:
                bars.stop()
                self._progress = None

    def note(self, message: str, **facts: object) -> None:
        """Print a line above the bars."""
        with self._lock:
            text = redact(f"{message}  {format_facts(facts)}".rstrip())
            if self._progress is not None:
                self._progress.console.print(text, markup=False, highlight=False)
            else:
                print(text, file=sys.stderr, flush=True)  # noqa: T201 - printing is this class's job

    def _bars(self) -> "Progress":
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}", markup=False),
                TimeRemainingColumn(),
                TextColumn("{task.fields[facts]}", markup=False),
            )
            self._progress = Progress(*columns, console=Console(stderr=True))
            self._progress.start()
        return self._progress


def format_facts(facts: Mapping[str, object]) -> str:
    """``a=1  b=0.1235``."""
    return "  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in facts.items())


def format_duration(seconds: float) -> str:
    """``0:07``, ``12:34`` or ``3:02:01``."""
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def _json_line(event: Mapping[str, Any]) -> str:
    facts = event.get("facts", {})
    flat = {k: v for k, v in event.items() if k != "facts"} | {k: v for k, v in facts.items() if k not in event}
    plain = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in flat.items()}
    return json.dumps({"time": round(time.time(), 3)} | plain, default=str)


def _plain_line(event: Mapping[str, Any]) -> str:
    clock = time.strftime("%H:%M:%S")
    facts = format_facts(event.get("facts", {}))
    if event["event"] == "note":
        return f"{clock}  {event['message']}  {facts}".rstrip()
    if event["event"] == "start":
        return f"{clock}  {event['task']}  0/{event['total']} {event['unit']}"
    if event["event"] == "finish":
        return f"{clock}  {event['task']}  {event['message'] or 'done'}  in {format_duration(event['elapsed_s'])}"
    share = f"  {100 * event['done'] / event['total']:.0f}%" if event["total"] else ""
    line = f"{clock}  {event['task']}  {event['done']}/{event['total']} {event['unit']}{share}"
    if "per_second" in event:
        line += f"  {event['per_second']:.3g}/s  eta {format_duration(event['eta_s'])}"
    return f"{line}  {facts}".rstrip()
