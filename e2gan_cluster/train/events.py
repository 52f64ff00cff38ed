"""What a training tells the outside: progress, losses, evaluations, notes.

The training function speaks to an `Events`; without Ray that is the reporter and the tracker themselves, with Ray a
relay to the driver process, so that workers never talk to MLflow.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from e2gan_cluster.progress import Reporter, SilentReporter

Kind = Literal["start", "progress", "evaluated", "note", "published"]


class TrackerLike(Protocol):
    """The part of a tracker that training uses."""

    def stage_run(self, stage: str) -> str:
        """Run of a stage."""
        ...

    def log(
        self, run_id: str, params: Mapping[str, Any], metrics: Mapping[str, float], step: int | None = None
    ) -> None:
        """Parameters and metrics."""
        ...

    def log_file(self, run_id: str, path_name: str, data: bytes) -> None:
        """A file."""
        ...

    def finish(self, run_id: str, ok: bool) -> None:
        """Close a run."""
        ...


@dataclass(frozen=True)
class Event:
    """One message.

    Attributes:
        kind: What happened.
        images: Images seen.
        values: Losses, metrics or parameters.
        text: Message of a note; id of a published base.
        files: Pictures by name.
    """

    kind: Kind
    images: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)


class Events(Protocol):
    """Where events go."""

    def emit(self, event: Event) -> None:
        """Passes an event on.

        Raises:
            BaseException: The run is to end.
        """
        ...

    def check(self) -> None:
        """Asked before every step.

        Raises:
            BaseException: The run is to end.
        """
        ...


class Silent:
    """Drops events: workers other than the first."""

    def emit(self, event: Event) -> None:
        """Ignore."""

    def check(self) -> None:
        """Nobody ends it."""


class Listener:
    """Turns events into progress lines and tracker entries, in the driver process.

    Args:
        task: Name of the training for progress.
        reporter: Progress.
        tracker: MLflow, or None.
        stage: Stage run of the tracker.
        on_begun: Called when the first step is about to be made.
    """

    def __init__(
        self,
        task: str,
        reporter: Reporter | None,
        tracker: TrackerLike | None,
        stage: str = "base",
        on_begun: Callable[[], None] = lambda: None,
    ) -> None:
        self.task = task
        self.reporter = reporter or SilentReporter()
        self.tracker = tracker
        self.run = tracker.stage_run(stage) if tracker is not None else ""
        self.published: str | None = None
        self._on_begun = on_begun
        self._collapse_told = False

    def emit(self, event: Event) -> None:
        """Handles one event."""
        if event.kind == "start":
            self.reporter.start(self.task, int(event.values["images"]), "images")
            self.reporter.update(self.task, event.images)
            self._log(event, as_params=True)
            self._on_begun()
        elif event.kind == "progress":
            facts = {n: event.values[n] for n in ("l1", "lpips", "d", "images_per_s") if n in event.values}
            self.reporter.update(self.task, event.images, **facts)
            self._log(event)
            self._tell_collapse(event)
        elif event.kind == "evaluated":
            shown = {name: value for name, value in event.values.items() if "/" not in name.removeprefix("heldout/")}
            self.reporter.note(f"{self.task} at {event.images} images", **shown)
            self._log(event)
        elif event.kind == "note":
            self.reporter.note(f"{self.task}: {event.text}")
        else:
            self.published = event.text
            self.reporter.finish(self.task, f"base {event.text}")
            self._log(event)

    def check(self) -> None:
        """Signals end this process by themselves."""

    def close(self, ok: bool) -> None:
        """Ends the tracker's run."""
        if self.tracker is not None:
            self.tracker.finish(self.run, ok)

    def _log(self, event: Event, as_params: bool = False) -> None:
        if self.tracker is None:
            return
        if as_params:
            self.tracker.log(self.run, event.values, {})
        elif event.values:
            self.tracker.log(self.run, {}, event.values, event.images)
        for name, data in event.files.items():
            self.tracker.log_file(self.run, name, data)

    def _tell_collapse(self, event: Event) -> None:
        if event.values.get("collapsed") and not self._collapse_told:
            self._collapse_told = True
            self.reporter.note(
                f"{self.task}: the discriminator's loss has stayed near 0 (collapse); "
                "lower base.train.lr_disc or raise base.train.loss.l1_weight"
            )
