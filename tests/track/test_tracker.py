"""The tracker on a real sqlite MLflow: one tree of runs, resumed, raced, deleted, refused."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from e2gan_cluster.track.mlflow_tracker import NullTracker, Tracker

FINGERPRINT = "0123456789abcdef" * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def client(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri(folder))


def runs(folder: Path, filter_string: str = "") -> list[Any]:
    mlflow = client(folder)
    experiments = [e.experiment_id for e in mlflow.search_experiments()]
    return mlflow.search_runs(experiments, filter_string, max_results=1000)


def one(folder: Path, kind: str) -> Any:
    (run,) = runs(folder, f"tags.`e2gan.kind` = '{kind}'")
    return run


def write_batch(tracker: Tracker) -> None:
    stage = tracker.stage_run("base")
    tracker.log(stage, {"width": 64}, {"l1": 0.2}, step=100)
    concept = tracker.concept_run("oil-painting", "make it an oil painting")
    history = [("lpips", 0.5 / (i + 1), i * 100) for i in range(4)]
    tracker.log_trial("oil-painting", "r1-n50-s0", {"rank": 1}, {"lpips": 0.125, "seconds": 3.0}, history)
    tracker.log(concept, {}, {"lpips": 0.125})
    tracker.log_file(concept, "grids/../grids/final.png", b"\x89PNG")
    tracker.finish(concept, ok=True)


def closed(tracker: Tracker) -> None:
    assert tracker.close(timeout_s=120)


def test_batch_stage_concept_and_trial_are_one_tree_outside_experiment_0(folder):
    with Tracker(uri(folder), "demo", FINGERPRINT) as tracker:
        write_batch(tracker)
        links_known_after = tracker
    batch, stage, concept, trial = (one(folder, kind) for kind in ("batch", "stage", "concept", "trial"))
    parents = [run.data.tags.get("mlflow.parentRunId") for run in (batch, stage, concept, trial)]
    assert parents == [None, batch.info.run_id, batch.info.run_id, concept.info.run_id]
    assert {run.info.experiment_id for run in (batch, stage, concept, trial)} != {"0"}
    assert [run.info.status for run in (batch, concept, trial)] == ["FINISHED"] * 3
    assert concept.data.params == {"concept": "oil-painting", "prompt": "make it an oil painting"}
    assert [m.step for m in client(folder).get_metric_history(trial.info.run_id, "lpips")] == [0, 100, 200, 300]
    assert trial.data.metrics == {"lpips": 0.125, "seconds": 3.0}
    assert (folder / "mlartifacts" / concept.info.run_id / "artifacts" / "grids" / "grids" / "final.png").is_file()
    assert links_known_after.links()["runs"]["concept/oil-painting"] == concept.info.run_id


def test_resumed_batch_goes_on_in_the_same_runs_without_doubling_anything(folder):
    for _ in range(2):
        tracker = Tracker(uri(folder), "demo", FINGERPRINT)
        write_batch(tracker)
        closed(tracker)
    assert len(runs(folder)) == 4
    trial = one(folder, "trial")
    assert len(client(folder).get_metric_history(trial.info.run_id, "lpips")) == 4
    tracker = Tracker(uri(folder), "demo", FINGERPRINT)
    tracker.log(tracker.stage_run("base"), {"width": 128, "depth": 3}, {})
    closed(tracker)
    assert one(folder, "stage").data.params == {"width": "64", "depth": "3"}
    other = Tracker(uri(folder), "demo", "f" * 64)
    closed(other)
    assert len(runs(folder, "tags.`e2gan.kind` = 'batch'")) == 2


def test_values_mlflow_would_refuse_are_made_fit(folder):
    tracker = Tracker(uri(folder), "demo", FINGERPRINT)
    run = tracker.concept_run("odd", "x" * 20_000)
    tracker.log(run, {"a:b/ü": None, **{f"p{i}": i for i in range(250)}}, {"lpips@5%": 1.0, "nan": float("nan")})
    tracker.log_history(run, [("loss", float(i), i) for i in range(2500)])
    closed(tracker)
    found = one(folder, "concept")
    assert found.data.params["a_b/_"] == "None"
    assert len(found.data.params) == 253
    assert found.data.metrics["lpips_5_"] == 1.0
    assert len(client(folder).get_metric_history(found.info.run_id, "loss")) == 2500
    assert not (folder / "tracking" / "rejected.jsonl").exists()


def test_a_deleted_run_is_made_again(folder):
    tracker = Tracker(uri(folder), "demo", FINGERPRINT)
    run = tracker.concept_run("oil-painting", "oil")
    wait_for(lambda: tracker.pending == 0)
    client(folder).delete_run(one(folder, "concept").info.run_id)
    tracker.log(run, {}, {"lpips": 0.5})
    closed(tracker)
    assert one(folder, "concept").data.metrics == {"lpips": 0.5}


def test_a_deleted_experiment_is_restored_in_the_middle_of_a_run(folder):
    tracker = Tracker(uri(folder), "demo", FINGERPRINT)
    run = tracker.concept_run("oil-painting", "oil")
    wait_for(lambda: tracker.pending == 0)
    client(folder).delete_experiment(one(folder, "batch").info.experiment_id)
    tracker.log(run, {}, {"psnr": 20.0})
    tracker.log_trial("oil-painting", "r1", {}, {"psnr": 20.0})
    closed(tracker)
    assert one(folder, "concept").data.metrics == {"psnr": 20.0}
    assert one(folder, "trial").data.metrics == {"psnr": 20.0}


def test_a_record_the_server_never_takes_holds_nothing_up(folder):
    said: list[str] = []
    tracker = Tracker(uri(folder), "demo", FINGERPRINT, say=said.append)
    tracker._put(tracker.batch_run, "nonsense")
    tracker.log(tracker.batch_run, {}, {"after": 1.0})
    closed(tracker)
    assert one(folder, "batch").data.metrics == {"after": 1.0}
    assert len(said) == 1
    assert "nonsense" in said[0]
    assert (folder / "tracking" / "rejected.jsonl").is_file()


def test_eight_processes_racing_to_create_the_experiment_share_one_and_never_use_0(folder):
    program = f"""
import os, sys
import mlflow, mlflow.tracking, sqlalchemy
from pathlib import Path
from e2gan_cluster.track.mlflow_tracker import Tracker
children = []
for i in range(8):
    pid = os.fork()
    if pid == 0:
        tracker = Tracker({uri(folder)!r}, "demo", {FINGERPRINT!r})
        tracker.concept_run("shared", "same for all")
        tracker.concept_run(f"own-{{i}}", "own")
        os._exit(0 if tracker.close(timeout_s=200) else 1)
    children.append(pid)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=280)
    names = [e.name for e in client(folder).search_experiments()]
    assert sorted(names) == ["Default", "e2gan"]
    found = runs(folder)
    assert "0" not in {run.info.experiment_id for run in found}
    assert sorted(run.info.run_name for run in found) == ["demo", *(f"own-{i}" for i in range(8)), "shared"]


class _Broken(BaseHTTPRequestHandler):
    """Answers everything with an error, or too late."""

    delay_s = 0.0

    def do_POST(self) -> None:
        time.sleep(self.delay_s)
        self.send_response(500)
        self.end_headers()
        self.wfile.write(b'{"error_code": "INTERNAL_ERROR"}')

    do_GET = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Slow(_Broken):
    delay_s = 1.5


@pytest.mark.parametrize("handler", [None, _Broken, _Slow])
def test_server_away_broken_or_slow_costs_training_nothing_and_the_next_run_sends_everything(folder, handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler or _Broken)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    if handler is None:
        server.server_close()
    else:
        thread.start()
    said: list[str] = []
    bad = f"http://me:hunter22@127.0.0.1:{server.server_port}"
    tracker = Tracker(bad, "demo", FINGERPRINT, folder=folder, say=said.append, timeout_s=1)
    start = time.monotonic()
    write_batch(tracker)
    assert time.monotonic() - start < 1.0
    wait_for(lambda: bool(said))
    assert not tracker.close(timeout_s=20)
    assert len(said) == 2, said
    assert "training goes on" in said[0]
    assert "sent by the next run" in said[1]
    leaked = [p for p in folder.rglob("*") if p.is_file() and b"hunter22" in p.read_bytes()]
    assert not leaked
    assert not any("hunter22" in line for line in said)
    closed(Tracker(uri(folder), "demo", FINGERPRINT, folder=folder))
    assert one(folder, "trial").data.metrics == {"lpips": 0.125, "seconds": 3.0}
    assert one(folder, "concept").info.status == "FINISHED"
    if handler is not None:
        server.shutdown()
        server.server_close()


def test_a_run_folder_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    said: list[str] = []
    tracker = Tracker("http://127.0.0.1:9", "demo", FINGERPRINT, folder=tmp_path / "file", say=said.append)
    write_batch(tracker)
    assert not tracker.close(timeout_s=20)
    assert "memory only" in said[0]
    assert "lost" in said[-1]


def test_null_tracker_takes_all_that_a_tracker_takes():
    names = {name for name in vars(NullTracker) if not name.startswith("_")}
    assert names <= set(dir(Tracker))
    with NullTracker() as tracker:
        tracker.log(tracker.concept_run("a", "b"), {}, {})


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
