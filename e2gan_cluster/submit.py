"""Submitting a batch to a Ray cluster, following it, stopping it.

The submission id is made from the config, so the same batch submitted twice is one job.

Example: ``e2gan submit --config configs/s3.yaml --address http://127.0.0.1:8265``
"""

import hashlib
import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2gan_cluster import errors
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import InputError, UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# What a job needs of the working folder is the package, jobs/ and configs/.
EXCLUDES = [
    ".venv/",
    ".git/",
    "runs/",
    "mlruns/",
    "docs/",
    "examples/",
    "tests/",
    "benchmarks/",
    "node_modules/",
]
# Passed on to the job's driver: endpoints and switches. Credentials come from the cluster's own environment
# (instance profile, Kubernetes secret): they are never copied into Ray's job records.
FORWARDED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "HF_HUB_OFFLINE")
OLD_SUPERVISOR_S, SETTLE_S, MONITOR_S = 30.0, 4.0, 5.0
"""Seconds a stopped job's supervisor may take to go, a new job to fail because of it, and Ray's monitor to notice."""
_LIVE = ("PENDING", "RUNNING")


@dataclass(frozen=True)
class Submission:
    """A job on the cluster.

    Attributes:
        job_id: Submission id.
        new: False if the same batch was there already.
    """

    job_id: str
    new: bool


def job_id(config: RunConfig, fingerprint: str) -> str:
    """Submission id of a batch: its name and 12 digits that stand for its fingerprint and its storage."""
    digest = hashlib.sha256(f"{fingerprint} {config.storage}".encode()).hexdigest()
    return f"e2gan-{config.name}-{digest[:12]}"


def connect(address: str) -> "JobSubmissionClient":
    """Client of the Jobs API at ``address`` (``http://host:8265``).

    Raises:
        UserError: Nothing answers there.
    """
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}",
            "start one with `ray start --head`, or forward its dashboard port (8265) and pass --address",
        ) from error


def submit(
    client: "JobSubmissionClient",
    config: RunConfig,
    fingerprint: str,
    config_path: Path,
    overrides: Sequence[str],
    working_dir: Path,
) -> Submission:
    """Submit a batch, or find it if it is on the cluster already.

    A batch that is pending, running or has succeeded is returned as it is. One that failed or was stopped is
    submitted again under the same id; it resumes from storage.

    Raises:
        InputError: The config file is not inside ``working_dir``.
    """
    name = job_id(config, fingerprint)
    found = _state(client, name)
    if found in (*_LIVE, "SUCCEEDED"):
        return Submission(name, new=False)
    if found is not None:
        _let_it_settle(client, name)
        client.delete_job(name)
    entrypoint, runtime_env = _entrypoint(config, config_path, overrides, working_dir), _runtime_env(working_dir)
    metadata = {"batch": config.name, "config_fingerprint": fingerprint, "storage": config.storage}
    deadline = time.monotonic() + OLD_SUPERVISOR_S
    try:
        client.submit_job(entrypoint=entrypoint, submission_id=name, runtime_env=runtime_env, metadata=metadata)
        while found is not None and _met_the_old_supervisor(client, name) and time.monotonic() < deadline:
            # It may run all the same: stop it, or its supervisor keeps the name.
            client.stop_job(name)
            time.sleep(1)
            client.delete_job(name)
            client.submit_job(entrypoint=entrypoint, submission_id=name, runtime_env=runtime_env, metadata=metadata)
    except (RuntimeError, ValueError) as error:
        # Somebody submitted the same batch between our look and our request.
        if _state(client, name) is None:
            raise UserError(f"the cluster refused the job: {error}", "see its dashboard for details") from error
        return Submission(name, new=False)
    return Submission(name, new=True)


def _let_it_settle(client: "JobSubmissionClient", name: str) -> None:
    """Wait until Ray has done with a job that ended a moment ago.

    Its monitor looks once a second and notes that the supervisor is gone under the job's name: by then that is the new
    job, which is called failed while it runs.
    """
    ended_ms = client.get_job_info(name).end_time
    if ended_ms is not None:
        time.sleep(min(max(ended_ms / 1000 + MONITOR_S - time.time(), 0.0), MONITOR_S))


def _met_the_old_supervisor(client: "JobSubmissionClient", name: str) -> bool:
    """Whether a job submitted again failed because the supervisor of the one before was not gone.

    Ray calls a job stopped before its supervisor ends; another job of that name then fails within a second, with it.
    """
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        info = client.get_job_info(name)
        if info.status.value == "FAILED":
            return "supervisor actor" in (info.message or "").lower()
        if info.status.value not in _LIVE:
            return False
        time.sleep(0.3)
    return False


def follow(client: "JobSubmissionClient", name: str, write: Callable[[str], None], poll_s: float = 1.0) -> int:
    """Print the job's log until it ends.

    Returns:
        Exit code of the job's driver: 0, or the code it ended with, or 1 where Ray does not tell it.
    """
    shown = 0
    while True:
        state = _state(client, name)
        log = client.get_job_logs(name) if state is not None else ""
        write(log[shown:])
        shown = len(log)
        if state not in _LIVE:
            break
        time.sleep(poll_s)
    if state == "SUCCEEDED":
        return errors.EXIT_OK
    code = client.get_job_info(name).driver_exit_code if state is not None else None
    return code if code else errors.EXIT_NOTHING_DONE


def stop(client: "JobSubmissionClient", name: str, timeout_s: float = 30.0) -> bool:
    """Ask a job to stop and wait for it.

    Returns:
        True if it was live and has ended, False if there was nothing to stop.
    """
    if _state(client, name) not in _LIVE:
        return False
    client.stop_job(name)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if _state(client, name) not in _LIVE:
            return True
        time.sleep(0.5)
    raise UserError(f"job {name} did not stop within {timeout_s:.0f} s", "try again, or end it in Ray's dashboard")


def _state(client: "JobSubmissionClient", name: str) -> str | None:
    try:
        return str(client.get_job_status(name).value)
    except RuntimeError:
        return None


def _runtime_env(working_dir: Path) -> dict[str, Any]:
    forwarded = {key: os.environ[key] for key in FORWARDED if key in os.environ}
    return {
        "working_dir": str(working_dir),
        "excludes": EXCLUDES,
        "env_vars": {"PYTHONPATH": ".", **forwarded},
    }


def _entrypoint(config: RunConfig, config_path: Path, overrides: Sequence[str], working_dir: Path) -> str:
    try:
        relative = config_path.resolve().relative_to(working_dir.resolve())
    except ValueError as error:
        raise InputError(
            f"{config_path} is not inside the working folder {working_dir}, so the cluster would not get it",
            "move it there, or pass --working-dir",
        ) from error
    command = ["python", "jobs/run_batch.py", "--config", relative.as_posix()]
    for override in overrides:
        command += ["--set", override]
    if "://" not in config.storage:
        command += ["--set", f"storage={Path(config.storage).resolve()}"]
    return shlex.join(command)
