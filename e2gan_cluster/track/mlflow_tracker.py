"""What the stages tell MLflow. Training never waits for it and never fails because of it.

One parent run per batch, a child per stage and per concept, a grandchild per trial. Calls append to a log on disk
and return; a thread sends. With the server away, slow or broken the log grows, one line says so, and everything
is sent in order once the server is back, by this process or by the next one on the same folder.

Example:
    with Tracker("sqlite:///runs/demo/mlflow.db", "demo", fingerprint) as tracker:
        run = tracker.concept_run("oil-painting", "turn it into an oil painting")
        tracker.log(run, {"rank": 2}, {"lpips": 0.18}, step=4000)
"""

import atexit
import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from e2gan_cluster.redact import redact
from e2gan_cluster.storage.keys import check_name
from e2gan_cluster.track.mlflow_backend import (
    MlflowBackend,
    RejectedError,
    clean_metrics,
    clean_params,
    quiet_mlflow,
)
from e2gan_cluster.track.spool import Record, Spool, pack

_LOG = logging.getLogger(__name__)
_FINGERPRINT_CHARS = 16
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
# A record that fails this often while the server answers others would hold up all that follow.
_MOST_TRIES = 5

HistoryRow = tuple[str, float, int]
"""Metric name, value, step."""


class NullTracker:
    """Takes everything and keeps nothing; for runs without tracking and for tests."""

    def __enter__(self) -> "NullTracker":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Nothing to close."""

    @property
    def batch_run(self) -> str:
        """Name of nothing."""
        return "none/none"

    def stage_run(self, stage: str) -> str:
        """Name of nothing."""
        return f"none/none/stage/{stage}"

    def concept_run(self, concept: str, prompt: str) -> str:
        """Name of nothing."""
        return f"none/none/concept/{concept}"

    def log(
        self, run_id: str, params: Mapping[str, Any], metrics: Mapping[str, float], step: int | None = None
    ) -> None:
        """Ignore."""

    def log_history(self, run_id: str, rows: Iterable[HistoryRow]) -> None:
        """Ignore."""

    def log_trial(
        self,
        concept: str,
        trial_id: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        history: Iterable[HistoryRow] = (),
    ) -> None:
        """Ignore."""

    def log_file(self, run_id: str, path_name: str, data: bytes) -> None:
        """Ignore."""

    def finish(self, run_id: str, ok: bool) -> None:
        """Ignore."""

    def links(self) -> dict[str, Any]:
        """There are none."""
        return {}

    def flush(self, timeout_s: float = 20.0) -> bool:
        """Nothing is left."""
        return True

    def close(self, timeout_s: float = 20.0) -> bool:
        """Nothing is left."""
        return True


def open_tracker(
    uri: str, batch: str, fingerprint: str, folder: Path | None = None, say: Callable[[str], None] | None = None
) -> "Tracker | NullTracker":
    """The tracker of a run; one that keeps nothing where ``uri`` is ``none`` or MLflow is not installed.

    Args:
        uri: MLflow tracking URI, or ``none``.
        batch: Name of the batch.
        fingerprint: Fingerprint of the run.
        folder: As in `Tracker`.
        say: As in `Tracker`.
    """
    if uri == "none":
        return NullTracker()
    if importlib.util.find_spec("mlflow") is None:
        (say or _LOG.warning)("MLflow is not installed, nothing is tracked: pip install 'e2gan-cluster[cluster]'")
        return NullTracker()
    return Tracker(uri, batch, fingerprint, folder, say)


class Tracker:
    """Tells MLflow about a batch. No method raises or waits for the network.

    Args:
        uri: MLflow tracking URI (``sqlite:///FILE`` or ``http://...``); credentials in it are used and never stored.
        batch: Name of the batch, a-z, 0-9, -.
        fingerprint: Fingerprint of the run; the same batch and fingerprint go on in the same runs.
        folder: Where unsent records and, for a database, artifacts lie; empty = beside the database, or ``runs/BATCH``.
        say: Gets the few lines meant for people; empty = logging.
        timeout_s: Longest wait for one answer of the server.
    """

    def __init__(
        self,
        uri: str,
        batch: str,
        fingerprint: str,
        folder: Path | None = None,
        say: Callable[[str], None] | None = None,
        timeout_s: int = 5,
    ) -> None:
        quiet_mlflow(timeout_s)
        database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
        folder = folder or (database.parent if database else Path("runs") / batch)
        self.uri = redact(uri)
        self._say = say or _LOG.warning
        self._root = f"{check_name(batch, 'batch')}/{fingerprint[:_FINGERPRINT_CHARS]}"
        self._spool = Spool(folder / "tracking")
        self._backend = MlflowBackend(uri, (folder / "mlartifacts").absolute() if database else None)
        self._closing = threading.Event()
        self._closed = False
        self._down = False
        self._memory_only = False
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._put(self._root, "open")
        self._thread.start()
        atexit.register(self.close)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the batch's run as finished, or as failed after an exception."""
        self.finish(self._root, kind is None)
        self.close()

    @property
    def batch_run(self) -> str:
        """The batch's own run, for `log`, `log_file` and `finish`."""
        return self._root

    @property
    def pending(self) -> int:
        """Records that are not sent yet."""
        return len(self._spool)

    def stage_run(self, stage: str) -> str:
        """The run of a stage, made or gone on with.

        Args:
            stage: Such as ``base``.

        Returns:
            Name to give to `log` and the others (not MLflow's own id: the server may be away).
        """
        return self._open(f"{self._root}/stage/{check_name(stage, 'stage')}")

    def concept_run(self, concept: str, prompt: str) -> str:
        """The run of a concept, made or gone on with.

        Args:
            concept: Name of the concept.
            prompt: Its edit instruction, kept as a parameter.

        Returns:
            Name to give to `log` and the others.
        """
        run = self._open(f"{self._root}/concept/{check_name(concept, 'concept')}")
        self.log(run, {"concept": concept, "prompt": prompt}, {})
        return run

    def log(
        self, run_id: str, params: Mapping[str, Any], metrics: Mapping[str, float], step: int | None = None
    ) -> None:
        """Log parameters and metrics.

        Args:
            run_id: From `stage_run`, `concept_run` or `batch_run`.
            params: Values are kept as text; the first value of a parameter stays.
            metrics: Name -> value.
            step: Images seen, or any other counter; 0 if empty.
        """
        rows = [(name, value, step or 0) for name, value in metrics.items()]
        self._put(run_id, "log", params=clean_params(params), metrics=clean_metrics(rows))

    def log_history(self, run_id: str, rows: Iterable[HistoryRow]) -> None:
        """Log many points of metrics at once.

        Args:
            run_id: As in `log`.
            rows: (name, value, step).
        """
        self._put(run_id, "log", params={}, metrics=clean_metrics(rows))

    def log_trial(
        self,
        concept: str,
        trial_id: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        history: Iterable[HistoryRow] = (),
    ) -> None:
        """Log a finished trial as a run below its concept; a trial that is there already is left alone.

        Args:
            concept: Name of the concept.
            trial_id: Name of the trial within the concept, a-z, 0-9, -.
            params: Rank, data size, seed and so on.
            metrics: Final values.
            history: (name, value, step) during the trial.
        """
        key = f"{self._root}/concept/{check_name(concept, 'concept')}/trial/{check_name(trial_id, 'trial')}"
        rows = list(history)
        last = max((step for _, _, step in rows), default=0)
        have = {(name, step) for name, _, step in rows}
        rows += [(name, value, last) for name, value in metrics.items() if (name, last) not in have]
        self._put(key, "trial", params=clean_params(params), metrics=clean_metrics(rows))

    def log_file(self, run_id: str, path_name: str, data: bytes) -> None:
        """Attach a small file (picture, table).

        Args:
            run_id: As in `log`.
            path_name: Name below the run's artifacts, such as ``grids/step-0.png``.
            data: Its bytes.
        """
        parts = [part for part in path_name.split("/") if part not in ("", ".", "..")]
        self._put(run_id, "file", name="/".join(parts) or "file", data=pack(data))

    def finish(self, run_id: str, ok: bool) -> None:
        """Close a run.

        Args:
            run_id: As in `log`.
            ok: Finished, or failed.
        """
        self._put(run_id, "finish", ok=ok)

    def links(self) -> dict[str, Any]:
        """Where the runs are in MLflow: URI without credentials, experiment id, run ids by name below the batch."""
        runs = {key.removeprefix(self._root).strip("/"): run_id for key, run_id in self._backend.runs.items()}
        return {"uri": self.uri, "experiment_id": self._backend.experiment_id, "runs": runs}

    def flush(self, timeout_s: float = 20.0) -> bool:
        """Wait until everything is sent; not at all while the server is away.

        Args:
            timeout_s: Longest wait.

        Returns:
            Whether everything was sent.
        """
        end = time.monotonic() + timeout_s
        while not self._down and time.monotonic() < end:
            if self._spool.wait_empty(0.1):
                return True
        return self.pending == 0

    def close(self, timeout_s: float = 20.0) -> bool:
        """Send what is left, as far as the server takes it in time; the rest stays on disk for the next run.

        Args:
            timeout_s: Longest wait.

        Returns:
            Whether everything was sent.
        """
        if self._closed:
            return self.pending == 0
        self._closed = True
        atexit.unregister(self.close)
        self._closing.set()
        self._spool.close_for_input()
        self._thread.join(timeout_s)
        if self.pending:
            self._say(
                f"{self.pending} tracking records are kept in {self._spool.folder} and sent by the next run"
                if self._spool.on_disk
                else f"{self.pending} tracking records are lost: {self._spool.folder} cannot be written"
            )
        self._spool.release()
        return self.pending == 0

    def _open(self, key: str) -> str:
        self._put(key, "open")
        return key

    def _put(self, run: str, op: str, **content: Any) -> None:
        if self._closed:
            self._say(f"tracking is closed: {op} of {run} is dropped")
            return
        self._spool.append({"op": op, "run": run, "t": int(time.time() * 1000), **content})
        if not self._spool.on_disk and not self._memory_only:
            self._memory_only = True
            self._say(f"{self._spool.folder} cannot be written: unsent tracking records are kept in memory only")

    def _send(self) -> None:
        """The sending thread: one record after the other, waiting longer after each failure."""
        tries, wait_s = 0, _FIRST_WAIT_S
        while (record := self._spool.first()) is not None:
            try:
                self._backend.apply(record)
            except RejectedError as error:
                self._reject(record, str(error))
            except Exception as error:  # noqa: BLE001 - whatever tracking meets, training goes on
                tries += 1
                self._note_down(error)
                if tries >= _MOST_TRIES and self._answers():
                    self._reject(record, f"failed {tries} times: {type(error).__name__}: {error}")
                    tries = 0
                    continue
                if self._closing.is_set():
                    return
                self._closing.wait(wait_s)
                wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
                continue
            else:
                self._spool.drop_first()
            if self._down:
                self._down = False
                self._say(f"MLflow at {self.uri} answers again; {self.pending} records to send")
            tries, wait_s = 0, _FIRST_WAIT_S

    def _note_down(self, error: Exception) -> None:
        if not self._down:
            self._down = True
            reason = redact(str(error).strip().split("\n")[0])[:200]
            self._say(
                f"MLflow at {self.uri} does not answer ({type(error).__name__}: {reason}); training goes on, "
                f"records are kept in {self._spool.folder} and sent later"
            )

    def _reject(self, record: Record, reason: str) -> None:
        self._say(f"MLflow refuses {record['op']} of {record['run']}: {redact(reason)[:200]}")
        self._spool.reject_first(redact(reason))

    def _answers(self) -> bool:
        """Whether the server takes anything at all: a simple question, asked anew."""
        try:
            self._backend.apply({"op": "open", "run": self._root, "t": int(time.time() * 1000)})
        except Exception:  # noqa: BLE001 - any failure is the answer
            return False
        return True
