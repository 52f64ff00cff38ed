"""F5: a cluster of several nodes on this machine; a node dies, then the head with everything Ray knows."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2gan_cluster import submit
from e2gan_cluster.batch import peek_batch
from e2gan_cluster.config_io import load_config
from e2gan_cluster.status import batch_status
from e2gan_cluster.storage.registry import list_adapters
from tests import chain_setup
from tests.conftest import S3Server
from tests.ray_nodes import Cluster, ray_nodes


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cl") as name:
        yield Path(name)


def send_with_rays_own_command(cluster: Cluster, run_file: Path) -> str:
    """``ray job submit``, as a user without our wrapper types it; the head has no CPU, so work goes to the workers."""
    command = [
        str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", cluster.address, "--no-wait",
        "--submission-id", f"batch-{cluster.dashboard}", "--working-dir", str(chain_setup.ROOT), "--",
        sys.executable, "jobs/run_batch.py", "--config", str(run_file),
    ]  # fmt: skip
    done = subprocess.run(command, env=cluster.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return f"batch-{cluster.dashboard}"


def wait_for(condition, what: str, timeout_s: float = 400) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        time.sleep(0.3)


@pytest.mark.timeout(900)
def test_a_lost_node_and_then_a_lost_head_lose_nothing(folder: Path, s3_env: S3Server) -> None:
    run_file = chain_setup.write_run_file(folder, f"s3://{s3_env.bucket}/cluster")
    batch = peek_batch(load_config(run_file))

    def stages() -> dict[str, dict[str, object]]:
        return dict(batch_status(batch).stages)

    with ray_nodes(folder, **chain_setup.environment(**s3_env.env())) as first:
        first.start_head(num_cpus=0)
        doomed = first.start_worker(num_cpus=2)
        first.start_worker(num_cpus=2)
        send_with_rays_own_command(first, run_file)
        wait_for(lambda: "pairs" in stages(), "the pairs stage")
        doomed.kill()
        wait_for(lambda: "layers" in stages(), "the layers stage")
    assert stages()["base"]["state"] == "done"
    made_at = {info.key: info.etag for info in batch.store.list("base/")}

    (folder / "again").mkdir()
    with ray_nodes(folder / "again", **chain_setup.environment(**s3_env.env())) as second:
        second.start_head(num_cpus=0)
        second.start_worker(num_cpus=2)
        job = send_with_rays_own_command(second, run_file)
        log: list[str] = []
        code = submit.follow(submit.connect(second.address), job, log.append)
        assert code == 0, "".join(log)[-4000:]

    assert {info.key: info.etag for info in batch.store.list("base/")} == made_at
    assert {info.concept for info in list_adapters(batch.store)} == set(chain_setup.NEW)
    assert {row.state for row in batch_status(batch).rows if row.role == "new"} == {"published"}
