"""SIGKILL of the driver or of a Ray Train worker: the same command ends with the same bytes as an unbroken run."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.storage import keys
from e2gan_cluster.train.base_driver import base_done, pretrain_base, train_base_local
from e2gan_cluster.train.base_store import base_fingerprint
from tests.tiny_base import CONCEPTS, with_pairs

IMAGES = 480
DEADLINE_S = 120


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> str:
    config, store = with_pairs(tmp_path_factory.mktemp("unbroken"), images=IMAGES, eval_images=240)
    return train_base_local(config, store, CONCEPTS, SilentReporter())


def _has_checkpoint(config, store) -> bool:
    prefix = keys.base_work_prefix(base_fingerprint(config, CONCEPTS))
    return any(info.key.endswith(".json") for info in store.list(prefix))


def _wait_for_checkpoint(config, store) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not _has_checkpoint(config, store):
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.05)


def test_killed_driver_resumes_to_the_same_bytes(unbroken, tmp_path):
    config, store = with_pairs(tmp_path, images=IMAGES, eval_images=240)
    program = (
        "import sys; from pathlib import Path; from tests.tiny_base import *;"
        "from e2gan_cluster.train.base_driver import train_base_local;"
        f"config = tiny_base_config(Path(sys.argv[1]), images={IMAGES}, eval_images=240);"
        "train_base_local(config, open_store(config.storage), CONCEPTS, SilentReporter())"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=root)
    _wait_for_checkpoint(config, store)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert base_done(config, store, CONCEPTS) is None
    assert train_base_local(config, store, CONCEPTS, SilentReporter()) == unbroken


def test_killed_ray_worker_resumes_to_the_same_bytes(unbroken, tmp_path, ray_cluster):
    config, store = with_pairs(tmp_path, images=IMAGES, eval_images=240)
    killed: list[int] = []

    def kill_one() -> None:
        _wait_for_checkpoint(config, store)
        for process in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                killed.append(process.pid)
                os.kill(process.pid, signal.SIGKILL)
                return

    thread = threading.Thread(target=kill_one)
    thread.start()
    notes: list[str] = []
    reporter = SilentReporter()
    reporter.note = lambda message, **facts: notes.append(message)
    assert pretrain_base(config, store, CONCEPTS, reporter) == unbroken
    thread.join()
    assert killed
    assert any("resumed from the checkpoint" in note for note in notes)
