"""Real Ray nodes for tests: each a ``ray start --block`` in a process group of its own."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import free_port


@dataclass
class Node:
    """One node: its process and what was said."""

    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """End the node and all that it started, as a power cut would."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


@dataclass
class Cluster:
    """A head and its workers on this machine.

    Attributes:
        address: Of the dashboard, for the Jobs API.
        gcs: ``host:port`` that nodes and drivers join.
    """

    folder: Path
    env: dict[str, str]
    port: int = field(default_factory=free_port)
    dashboard: int = field(default_factory=free_port)
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    @property
    def gcs(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start_head(self, num_cpus: int, timeout_s: float = 120) -> Node:
        """Start the head and wait until its Jobs API answers."""
        node = self._start(
            "head", "--head", f"--port={self.port}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard}", "--include-dashboard=true", f"--num-cpus={num_cpus}",
            f"--temp-dir={self.folder / 'r'}",
        )  # fmt: skip
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.address}/api/jobs/", timeout=5) as answer:
                    if answer.status == 200:
                        return node
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise RuntimeError(f"no Ray head: {node.log.read_text()[-2000:]}")

    def start_worker(self, num_cpus: int, resources: str = "{}") -> Node:
        """Start one more node."""
        name = f"w{len(self.nodes)}"
        # A folder of its own, as on a machine of its own: a dying node clears up in its folder.
        return self._start(
            name,
            f"--address={self.gcs}",
            f"--num-cpus={num_cpus}",
            f"--resources={resources}",
            f"--temp-dir={self.folder / name}",
        )

    def _start(self, name: str, *arguments: str) -> Node:
        log = self.folder / f"{name}.log"
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats",
            f"--dashboard-agent-listen-port={free_port()}", f"--object-store-memory={100 * 2**20}", *arguments,
        ]  # fmt: skip
        with log.open("ab") as stream:
            process = subprocess.Popen(command, env=self.env, stdout=stream, stderr=stream, start_new_session=True)
        node = Node(process, log)
        self.nodes.append(node)
        return node


@contextmanager
def ray_nodes(folder: Path, **env: str) -> Iterator[Cluster]:
    """A cluster whose nodes are all ended at exit; Ray's folder must have a short path (unix sockets)."""
    settings = {**os.environ, "RAY_AUTH_MODE": "disabled", "HOME": str(folder), **env}
    cluster = Cluster(folder, settings)
    try:
        yield cluster
    finally:
        for node in reversed(cluster.nodes):
            node.kill()
