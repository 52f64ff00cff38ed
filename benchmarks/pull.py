"""Pulling many adapters from a local SeaweedFS, beside a plain parallel boto3 download of the same bytes.

Example:
    python benchmarks/pull.py --adapters 200
"""

import argparse
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from e2gan_cluster.storage import ObjectStore, open_store
from e2gan_cluster.storage.bundle import publish_bundle
from e2gan_cluster.storage.folder import verify_folder
from e2gan_cluster.storage.parallel import parallel_map
from e2gan_cluster.storage.registry import publish_adapter

BUCKET, BASE_ID = "adapters", "0123456789ab"
LAYER = "us.conv"
KEYS = {"AWS_ACCESS_KEY_ID": "benchkey", "AWS_SECRET_ACCESS_KEY": "benchsecret", "AWS_REGION": "us-east-1"}


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """A SeaweedFS of our own; gives its S3 endpoint."""
    weed = shutil.which("weed") or str(Path(sys.executable).with_name("weed"))
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    command = [
        weed, "-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", "-webdav=false", "-admin.ui=false", f"-bucket={BUCKET}",
        *(f"-{name}.port={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **KEYS}, stdout=log, stderr=log, cwd=folder)
    try:
        yield f"http://127.0.0.1:{ports['s3']}"
    finally:
        process.kill()
        process.wait(10)


def wait_ready(store: ObjectStore, timeout_s: float = 60) -> None:
    """Until the bucket takes writes."""
    from e2gan_cluster.errors import StoreError

    end_s = time.monotonic() + timeout_s
    while True:
        try:
            store.put("ready", b"")
            return
        except StoreError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.5)


def fill(store: ObjectStore, count: int, adapter_bytes: int, base_bytes: int) -> None:
    """Publish adapters of a realistic size."""
    random = np.random.default_rng(0)

    def publish(number: int) -> None:
        side = adapter_bytes // 8
        pair = {"A": random.normal(size=(1, side)), "B": random.normal(size=(side, 1))}
        tensors = {f"base_model.model.{LAYER}.lora_{half}.weight": value.astype("f4") for half, value in pair.items()}
        config = {"base_model_name_or_path": BASE_ID, "r": 1, "target_modules": [LAYER], "peft_type": "LORA"}
        files = {
            "adapter_model.safetensors": save(tensors),
            "adapter_config.json": json.dumps(config).encode(),
            "adapter.onnx_adapter": np.random.default_rng(number).bytes(adapter_bytes),
        }
        meta = {
            "base_id": BASE_ID,
            "config_fingerprint": "",
            "code_version": "",
            "teacher_fingerprint": "",
            "metrics": {},
        }
        publish_adapter(store, f"effect-{number:03d}", files, meta)

    for _ in parallel_map(publish, range(count), 8):
        pass
    publish_bundle(store, f"mobile/{BASE_ID}/", {"base.onnx": random.bytes(base_bytes)}, {"base_id": BASE_ID})


PLAIN = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import boto3
from botocore.config import Config
endpoint, bucket, prefix, wanted, out, workers = json.load(sys.stdin)
client = boto3.client("s3", endpoint_url=endpoint, config=Config(max_pool_connections=workers))
def bring(key):
    path = Path(out, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(client.get_object(Bucket=bucket, Key=f"{prefix}/{key}")["Body"].read())
with ThreadPoolExecutor(workers) as pool:
    list(pool.map(bring, wanted))
"""
"""What anybody would write: boto3 and threads, nothing verified."""


@dataclass(frozen=True)
class Cost:
    """What a whole process took, seconds; processor time hardly depends on what else the machine does."""

    wall_s: float
    cpu_s: float


def run_timed(command: list[str], text: str = "") -> Cost:
    """Run a process to its end."""
    before, begin_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, capture_output=True, input=text, text=True)
    wall_s, after = time.monotonic() - begin_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> None:
    """Measure and print ratios; every figure is of a whole process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--adapter-kb", type=int, default=370, help="size of an adapter; FACTS: 0.37 MB fp32")
    parser.add_argument("--base-mb", type=int, default=29)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, seaweedfs(Path(folder)) as endpoint:
        os.environ.update(KEYS, AWS_ENDPOINT_URL_S3=endpoint, XDG_CACHE_HOME=f"{folder}/cache")
        store = open_store(f"s3://{BUCKET}/bench")
        wait_ready(store)
        fill(store, options.adapters, options.adapter_kb * 1000, options.base_mb * 1_000_000)
        measure(Path(folder), endpoint, store, options)


def measure(folder: Path, endpoint: str, store: ObjectStore, options: argparse.Namespace) -> None:
    """Interleave the ways, so that a busy machine slows all alike."""
    needed = ("adapter.onnx_adapter", "manifest.json", "base.onnx")
    wanted = [info.key for info in store.list() if info.key.endswith(needed)]
    plain: list[Cost] = []
    first: list[Cost] = []
    again: list[Cost] = []
    num_bytes = 0
    for number in range(options.repeats):
        target, other = folder / f"pull-{number}", folder / f"plain-{number}"
        pull = [sys.executable, "-m", "e2gan_cluster.cli", "pull", "--registry", store.url, "--out", str(target)]
        pull += ["--workers", str(options.workers), "--log-format", "plain"]
        arguments = json.dumps([endpoint, BUCKET, "bench", wanted, str(other), options.workers])
        plain.append(run_timed([sys.executable, "-c", PLAIN], arguments))
        first.append(run_timed(pull))
        again.append(run_timed(pull))
        num_bytes = verify_folder(target).num_bytes
        shutil.rmtree(other)
        shutil.rmtree(target)
    ratio = statistics.median(a.wall_s / b.wall_s for a, b in zip(first, plain, strict=True))
    print(
        f"{options.adapters} adapters, {num_bytes / 1e6:.0f} MB, {options.workers} threads, median of {options.repeats}"
    )
    for name, costs in (("plain boto3 download", plain), ("e2gan pull", first), ("e2gan pull, no change", again)):
        wall_s, cpu_s = (
            statistics.median(values) for values in zip(*((c.wall_s, c.cpu_s) for c in costs), strict=True)
        )
        print(f"{name:22} {wall_s:6.2f} s wall {cpu_s:6.2f} s CPU")
    print(f"e2gan pull to plain boto3, median of pairs: {ratio:.2f} (target <= 1.5); no change: target <= 1 s")


if __name__ == "__main__":
    main()
