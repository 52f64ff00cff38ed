"""Applies tracking records to an MLflow server or database. Every record may be applied twice without harm.

Runs are found by their tag ``e2gan.key`` (``BATCH/FINGERPRINT/concept/NAME/trial/ID``), from which parent, name and
kind follow, so no run id is ever stored and a resumed batch goes on in the same runs. Only `MlflowClient` is used:
no global state of MLflow's fluent API, and never experiment 0.
"""

import fcntl
import getpass
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2gan_cluster.redact import redact
from e2gan_cluster.track.spool import Record, unpack

EXPERIMENT = "e2gan"
KEY_TAG = "e2gan.key"
_MAX_METRICS, _MAX_PARAMS = 1000, 100
_PARAM_CHARS, _PARAM_NAME_CHARS = 500, 200
# What the same call would meet again; everything else (no answer, 5xx, 401, 429, locked database) may pass.
_PERMANENT = frozenset(
    {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST", "INVALID_STATE"}
)


class RejectedError(Exception):
    """A record that the server will never take."""


def quiet_mlflow(timeout_s: int) -> None:
    """Short answers and no telemetry; before mlflow is imported. Values the user has set stay."""
    for name, value in {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(name, value)


class MlflowBackend:
    """One experiment on one tracking server.

    Not thread-safe: owned by the tracker's sending thread.

    Args:
        uri: MLflow tracking URI; may hold credentials, which are never written anywhere.
        artifact_root: Folder of artifacts for a database without a server; a server has its own.
    """

    def __init__(self, uri: str, artifact_root: Path | None = None) -> None:
        self._uri = uri
        self._artifact_root = artifact_root
        self._client: Any = None
        self._experiment_id: str | None = None
        self._runs: dict[str, str] = {}

    @property
    def experiment_id(self) -> str | None:
        """Id of the experiment, None before the first contact."""
        return self._experiment_id

    @property
    def runs(self) -> Mapping[str, str]:
        """Run key -> MLflow run id, of the runs met so far."""
        return self._runs

    def apply(self, record: Record) -> None:
        """Do what a record says.

        Raises:
            RejectedError: It can never be done.
            Exception: Anything else; it may work later.
        """
        from mlflow.exceptions import MlflowException

        for attempt in (1, 2):
            try:
                self._apply(record)
                return
            except MlflowException as error:
                if error.error_code not in _PERMANENT:
                    raise
                if attempt == 2:
                    raise RejectedError(redact(str(error))[:500]) from error
                # The experiment or the run was deleted meanwhile, or lives on a server that was replaced.
                self._experiment_id = None
                self._runs.clear()

    def _apply(self, record: Record) -> None:
        run_id = self._ensure(record["run"], record["t"])
        match record["op"]:
            case "open":
                if self._client.get_run(run_id).info.status != "RUNNING":
                    self._client.update_run(run_id, status="RUNNING")
            case "log":
                self._log(run_id, record)
            case "trial":
                if self._client.get_run(run_id).info.status == "RUNNING":
                    self._log(run_id, record)
                    self._client.set_terminated(run_id, "FINISHED", record["t"])
            case "file":
                self._file(run_id, record["name"], unpack(record["data"]))
            case "finish":
                self._client.set_terminated(run_id, "FINISHED" if record["ok"] else "FAILED", record["t"])
            case other:
                raise RejectedError(f"unknown operation {other!r}")

    def _log(self, run_id: str, record: Record) -> None:
        """Parameters and metrics in as few calls as MLflow's limits allow; one for a trial of usual size."""
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        metrics = [Metric(name, value, record["t"], step) for name, value, step in record["metrics"]]
        params = [Param(name, value) for name, value in record["params"].items()]
        batches = max(math.ceil(len(metrics) / (_MAX_METRICS - _MAX_PARAMS)), math.ceil(len(params) / _MAX_PARAMS), 1)
        for i in range(batches):
            part = metrics[i * (_MAX_METRICS - _MAX_PARAMS) : (i + 1) * (_MAX_METRICS - _MAX_PARAMS)]
            some = params[i * _MAX_PARAMS : (i + 1) * _MAX_PARAMS]
            try:
                self._client.log_batch(run_id, metrics=part, params=some)
            except MlflowException as error:
                # MLflow takes a parameter once; on a resumed run with another value the first one stays.
                known = self._client.get_run(run_id).data.params
                if error.error_code not in _PERMANENT or not any(p.key in known for p in some):
                    raise
                self._client.log_batch(run_id, metrics=part, params=[p for p in some if p.key not in known])

    def _file(self, run_id: str, name: str, data: bytes) -> None:
        folder, _, base = name.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / base
            path.write_bytes(data)
            self._client.log_artifact(run_id, str(path), folder or None)

    def _ensure(self, key: str, now_ms: int) -> str:
        """Run id of a key, with its parents; made if it is not there."""
        if key in self._runs:
            return self._runs[key]
        experiment = self._experiment()
        parent = parent_of(key)
        parent_id = self._ensure(parent, now_ms) if parent else None
        found = self._find(experiment, key)
        if not found:
            tags = {**tags_of(key), "mlflow.user": _user()}
            if parent_id:
                tags["mlflow.parentRunId"] = parent_id
            made = self._client.create_run(experiment, start_time=now_ms, tags=tags, run_name=tags["mlflow.runName"])
            found = [made.info.run_id] if "/trial/" in key else self._settle(experiment, key, made.info.run_id)
        self._runs[key] = found[0]
        return found[0]

    def _settle(self, experiment: str, key: str, made: str) -> list[str]:
        """Of two processes that made the same run at once, one takes its own back."""
        found = self._find(experiment, key) or [made]
        if found[0] != made:
            self._client.delete_run(made)
        return found

    def _find(self, experiment: str, key: str) -> list[str]:
        runs = self._client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=50)
        return [run.info.run_id for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))]

    def _experiment(self) -> str:
        """Id of the experiment: found, restored, or created; racing creators end with the same one."""
        if self._experiment_id is None:
            with self._first_contact():
                self._experiment_id = self._open_experiment()
        return self._experiment_id

    @contextmanager
    def _first_contact(self) -> Iterator[None]:
        """One process at a time: MLflow's own creation of tables breaks a database that two begin at once."""
        if not self._uri.startswith("sqlite:///"):
            yield
            return
        with Path(f"{self._uri.removeprefix('sqlite:///')}.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _open_experiment(self) -> str:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        if self._client is None:
            self._client = MlflowClient(tracking_uri=self._uri)
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            try:
                location = str(self._artifact_root) if self._artifact_root else None
                self._client.create_experiment(EXPERIMENT, artifact_location=location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            raise ConnectionError(f"the experiment {EXPERIMENT} was created but cannot be found")
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)


def parent_of(key: str) -> str | None:
    """Key of the parent run: of a concept or stage the batch, of a trial its concept."""
    parts = key.split("/")
    return "/".join(parts[:-2]) if len(parts) > 2 else None


def tags_of(key: str) -> dict[str, str]:
    """Tags that make a run findable and readable in MLflow."""
    parts = key.split("/")
    tags = {KEY_TAG: key, "e2gan.batch": parts[0], "e2gan.fingerprint": parts[1]}
    tags.update({f"e2gan.{kind}": name for kind, name in zip(parts[2::2], parts[3::2], strict=True)})
    kind, name = (parts[-2], parts[-1]) if len(parts) > 2 else ("batch", parts[0])
    return {**tags, "e2gan.kind": kind, "mlflow.runName": name}


def clean_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as MLflow takes them: known characters, bounded length, no secrets."""
    return {_clean_name(name): redact(str(value))[:_PARAM_CHARS] for name, value in params.items()}


def clean_metrics(metrics: Iterable[tuple[str, float, int]]) -> list[tuple[str, float, int]]:
    """Metrics as MLflow takes them."""
    return [(_clean_name(name), float(value), int(step)) for name, value, step in metrics]


def _clean_name(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-. /") else "_" for c in name)[:_PARAM_NAME_CHARS]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
