"""A real MLflow server that goes away in the middle of a batch and comes back on the same port."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from e2gan_cluster.track.mlflow_tracker import Tracker


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """One `mlflow server` on sqlite, started and stopped at will."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination", str(self.folder / "art"),
        ]  # fmt: skip
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        log = (self.folder / "server.log").open("ab")
        self._process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.3)
        raise RuntimeError((self.folder / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait(20)
            self._process = None


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.kill()


def test_server_killed_in_the_middle_gets_everything_in_order_when_it_is_back(server, tmp_path):
    from mlflow import MlflowClient

    said: list[str] = []
    server.start()
    tracker = Tracker(server.url, "demo", "a" * 64, folder=tmp_path / "run", say=said.append, timeout_s=20)
    first = tracker.concept_run("before", "x")
    tracker.log(first, {}, {"lpips": 0.5}, step=1)
    deadline = time.monotonic() + 60
    while tracker.pending and time.monotonic() < deadline:
        time.sleep(0.1)
    assert tracker.pending == 0
    server.kill()
    tracker.log(first, {}, {"lpips": 0.25}, step=2)
    tracker.log_trial("while-away", "r1", {"rank": 1}, {"lpips": 0.1})
    tracker.log_file(first, "grid.png", b"\x89PNG")
    tracker.finish(first, ok=True)
    while not said and time.monotonic() < deadline:
        time.sleep(0.1)
    server.start()
    assert tracker.close(timeout_s=120), said
    assert len(said) == 2
    assert "training goes on" in said[0]
    assert "answers again" in said[1]
    client = MlflowClient(tracking_uri=server.url)
    experiment = client.get_experiment_by_name("e2gan")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"demo", "before", "while-away", "r1"}
    run_id = runs["before"].info.run_id
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "lpips")] == [(1, 0.5), (2, 0.25)]
    assert runs["before"].info.status == "FINISHED"
    assert [item.path for item in client.list_artifacts(run_id)] == ["grid.png"]
