"""Batches as Ray jobs, on a real Ray head."""

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2gan_cluster import submit
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import InputError, UserError
from tests.ray_nodes import Cluster, ray_nodes

# Stands for the real driver: tells what it was given, waits while a file exists, ends with a code from the config.
DRIVER = """
import pathlib, sys, time
print("arguments", sys.argv[1:], flush=True)
config = dict(line.split(": ") for line in pathlib.Path(sys.argv[2]).read_text().splitlines())
while pathlib.Path(config["wait"]).exists():
    time.sleep(0.2)
sys.exit(int(config["code"]))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="r") as folder, ray_nodes(Path(folder)) as nodes:
        nodes.start_head(num_cpus=2)
        yield nodes


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "run_batch.py").write_text(DRIVER)
    return tmp_path


def write_config(project: Path, code: int) -> Path:
    path = project / "batch.yaml"
    path.write_text(f"code: {code}\nwait: {project / 'wait'}\n")
    return path


def send(cluster: Cluster, project: Path, code: int, fingerprint: str) -> submit.Submission:
    config = RunConfig.model_validate({"name": "demo", "storage": str(project / "run")})
    path = write_config(project, code)
    return submit.submit(submit.connect(cluster.address), config, fingerprint, path, ["seed=3"], project)


@pytest.mark.parametrize("code", [0, 3])
def test_follow_prints_the_log_and_ends_with_the_drivers_code(cluster: Cluster, project: Path, code: int) -> None:
    job = send(cluster, project, code, f"{code}0" * 32)
    lines: list[str] = []
    assert submit.follow(submit.connect(cluster.address), job.job_id, lines.append) == code
    text = "".join(lines)
    assert "'--config', 'batch.yaml'" in text
    assert "seed=3" in text
    assert f"storage={project / 'run'}" in text


def test_same_batch_submitted_twice_at_once_is_one_job(cluster: Cluster, project: Path) -> None:
    (project / "wait").touch()
    found: list[submit.Submission] = []
    threads = [threading.Thread(target=lambda: found.append(send(cluster, project, 0, "ab" * 32))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    (project / "wait").unlink()
    client = submit.connect(cluster.address)
    assert {job.job_id for job in found} == {found[0].job_id}
    assert sum(job.submission_id == found[0].job_id for job in client.list_jobs()) == 1
    assert submit.follow(client, found[0].job_id, lambda _: None) == 0
    assert not send(cluster, project, 0, "ab" * 32).new


def test_stopped_batch_is_submitted_again_under_the_same_id(cluster: Cluster, project: Path) -> None:
    client = submit.connect(cluster.address)
    (project / "wait").touch()
    first = send(cluster, project, 0, "cd" * 32)
    assert submit.stop(client, first.job_id)
    assert not submit.stop(client, first.job_id)
    (project / "wait").unlink()
    second = send(cluster, project, 0, "cd" * 32)
    assert (second.job_id, second.new) == (first.job_id, True)
    assert submit.follow(client, second.job_id, lambda _: None) == 0


def test_config_outside_the_working_folder_is_refused(
    cluster: Cluster, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "x.yaml"
    outside.write_text("")
    with pytest.raises(InputError, match="working folder"):
        submit.submit(submit.connect(cluster.address), RunConfig.model_validate({}), "e" * 64, outside, [], project)


def test_no_cluster_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="no Ray cluster answers"):
        submit.connect("http://127.0.0.1:9")


def test_same_batch_in_another_storage_is_another_job() -> None:
    here, there = (RunConfig.model_validate({"storage": storage}) for storage in ("/a", "s3://bucket/a"))
    assert submit.job_id(here, "f" * 64) != submit.job_id(there, "f" * 64)
