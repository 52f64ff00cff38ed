"""`e2gan doctor` finds what would stop a run, says how to mend it, and leaves nothing behind."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from e2gan_cluster import doctor
from e2gan_cluster.cli import app
from e2gan_cluster.config_io import load_config
from e2gan_cluster.storage import open_store


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def check(function, *settings: str) -> doctor.Check:
    return function(load_config(None, settings))


def test_a_healthy_set_up_is_exit_code_0_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "check_teacher", lambda config: doctor.Check("teacher", "ok", "there"))
    (tmp_path / "run.yaml").write_text(f"storage: {tmp_path}/store\n")
    result = CliRunner().invoke(app, ["doctor", "--config", str(tmp_path / "run.yaml")])
    lines = result.stdout.splitlines()
    assert result.exit_code == 0, result.stdout
    assert [line.split()[1] for line in lines] == [
        "packages", "concepts", "photos", "teacher", "storage", "mlflow", "ray", "gpu", "disk",
    ]  # fmt: skip
    assert list(open_store(tmp_path / "store").list()) == []


def test_whatever_fails_the_others_are_still_checked(tmp_path):
    (tmp_path / "run.yaml").write_text(f"storage: {tmp_path}/run.yaml/x\nconcepts: {{base: [nothing]}}\n")
    result = CliRunner().invoke(app, ["doctor", "--config", str(tmp_path / "run.yaml")])
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    assert result.exit_code == 1
    assert {"concepts", "storage"} <= {line.split()[1] for line in failed}
    assert len(result.stdout.splitlines()) >= 9
    assert "Traceback" not in result.output


def test_packages_are_compared_with_what_the_project_needs(monkeypatch):
    wanted = [("numpy", ">=2"), ("no-such-thing", ">=1"), ("pydantic", "==1.0")]
    monkeypatch.setattr(doctor, "_requirements", lambda: iter(wanted))
    found = check(doctor.check_packages)
    assert found.state == "failed"
    assert "no-such-thing is missing; pydantic" in found.detail
    assert "is not ==1.0" in found.detail
    assert "pip install" in found.fix


@pytest.mark.parametrize(
    ("found", "wanted", "fits"),
    [
        ("2.60.0", "==2.60.0", True),
        ("1.31", ">=1.31.0", True),
        ("3.18.1", ">=3.17,<3.18", False),
        ("2.13.0+cpu", ">=2.13", True),
    ],
)
def test_versions_are_compared_by_number(found, wanted, fits):
    assert doctor._fits(found, wanted) is fits


def test_no_concept_left_to_adapt_to_is_found():
    found = check(doctor.check_concepts, "concepts.base_count=100")
    assert (found.state, "none is left" in found.detail) == ("failed", True)


def test_unreadable_photos_are_counted_and_named(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    found = check(doctor.check_photos, f"photos.source={tmp_path}")
    assert found.state == "failed"
    assert "0 of 2 sampled can be read" in found.detail
    assert "a.jpg: the bytes are no image" in found.detail


@pytest.mark.parametrize(
    ("model", "state"),
    [("/nowhere/model", "failed"), ("nowhere", "failed"), ("owner/model", "warning")],
)
def test_a_teacher_that_cannot_be_loaded_is_found(monkeypatch, model, state):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert check(doctor.check_teacher, f"teacher.model={model}").state == state


def test_an_s3_store_is_tried_with_its_credentials(s3_env, monkeypatch):
    good = check(doctor.check_storage, f"storage=s3://{s3_env.bucket}/doctor")
    assert (good.state, "conditional writes honoured" in good.detail) == ("ok", True)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrongsecretkey")
    checks = {c.name: c for c in doctor.run_checks(load_config(None, [f"storage=s3://{s3_env.bucket}/doctor"]))}
    assert checks["storage"].state == "failed"
    assert checks["storage"].fix
    assert "wrongsecretkey" not in str(checks)


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        allowed = self.headers.get("Authorization") == "Bearer opensesame"
        self.send_response(200 if allowed and self.path == "/health" else 401)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_an_mlflow_server_is_asked_with_the_credentials_of_the_environment(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tracking = f"tracking=http://127.0.0.1:{server.server_address[1]}"
        refused = check(doctor.check_mlflow, tracking)
        assert (refused.state, "MLFLOW_TRACKING_TOKEN" in refused.fix) == ("failed", True)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "opensesame")
        assert check(doctor.check_mlflow, tracking).state == "ok"
        server.shutdown()
    assert check(doctor.check_mlflow, f"tracking=http://127.0.0.1:{unused_port()}").state == "failed"


def test_a_tracking_file_that_is_no_database_is_found(tmp_path):
    (tmp_path / "mlflow.db").write_text("not a database at all, just a long enough text" * 10)
    assert check(doctor.check_mlflow, f"tracking=sqlite:///{tmp_path}/mlflow.db").state == "failed"
    assert check(doctor.check_mlflow, f"tracking=sqlite:///{tmp_path}/new.db").state == "ok"
    assert check(doctor.check_mlflow, f"tracking={tmp_path}/mlruns").state == "failed"


def test_workers_that_fit_on_no_machine_are_found():
    found = check(doctor.check_ray, "ray.num_cpus=1", "pairs.worker_cpus=2")
    assert (found.state, "pairs.worker_cpus" in found.fix) == ("failed", True)
    assert check(doctor.check_ray, "ray.num_cpus=4").state == "ok"


def test_a_cluster_that_does_not_answer_is_found_in_bounded_time(monkeypatch):
    monkeypatch.setattr(doctor, "_RAY_TIMEOUT_S", 3.0)
    found = check(doctor.check_ray, f"ray.address=127.0.0.1:{unused_port()}")
    assert (found.state, "ray start --head" in found.fix) == ("failed", True)


def test_gpus_that_are_asked_for_and_missing_or_unusable_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check(doctor.check_gpu).state == "ok"
    assert check(doctor.check_gpu, "pairs.worker_gpus=1").state == "failed"
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA Test GPU, 2048, 81559'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(doctor, "_python", lambda program, timeout_s: "13.0 True")
    small = check(doctor.check_gpu, "pairs.worker_gpus=1")
    assert (small.state, small.detail) == ("warning", "NVIDIA Test GPU: 2.0 of 79.6 GiB free")
    monkeypatch.setattr(doctor, "_python", lambda program, timeout_s: "None False")
    assert check(doctor.check_gpu, "pairs.worker_gpus=1").state == "failed"


def test_a_full_disk_is_found(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**28})())
    found = check(doctor.check_disk)
    assert (found.state, "make room" in found.fix) == ("failed", True)
