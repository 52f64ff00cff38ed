"""F3, F4, F5: drivers killed in any stage, and stopped politely."""

import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2gan_cluster.storage import open_store
from e2gan_cluster.storage.registry import read_manifest, resolve
from tests import chain_setup

pytestmark = pytest.mark.timeout(900)

STAGES = ("pairs", "base", "layers", "adapt", "publish")


def stage_of(storage: Path) -> str:
    """The stage a run says it is in, or an empty text before the first."""
    for path in storage.glob("runs/*/stages.json"):
        try:
            stages = json.loads(path.read_text())
        except ValueError:
            return ""
        return next((name for name in reversed(STAGES) if name in stages), "")
    return ""


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def processes_of(marker: str) -> list[str]:
    """Command lines of live processes whose environment holds ``marker``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ch") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> Path:
    """Storage of a run that nothing happened to."""
    run_file = chain_setup.write_run_file(folder, str(folder / "unbroken"))
    log = folder / "unbroken.txt"
    assert chain_setup.run("run", "--config", str(run_file), log=log) == 0, log.read_text()[-4000:]
    return folder / "unbroken"


def test_run_killed_in_every_stage_publishes_the_same_bytes(folder: Path, unbroken: Path) -> None:
    storage = folder / "killed"
    log = folder / "killed.txt"
    rng = random.Random(0)
    command = ("run", "--config", str(folder / "run.yaml"), "--set", f"storage={storage}")
    for stage in STAGES:
        process = chain_setup.start(*command, log=log)
        while stage_of(storage) != stage and process.poll() is None:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 2))
        kill_group(process)
    assert chain_setup.run(*command, log=log) == 0, log.read_text()[-4000:]

    assert chain_setup.published(open_store(str(storage))) == chain_setup.published(open_store(str(unbroken)))
    for concept in chain_setup.NEW:
        stores = [open_store(str(root)) for root in (storage, unbroken)]
        versions = [resolve(store, concept) for store in stores]
        manifests = [read_manifest(store, concept, version) for store, version in zip(stores, versions, strict=True)]
        assert versions[0] == versions[1]
        assert manifests[0].files == manifests[1].files


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.usefixtures("unbroken")
def test_polite_stop_ends_soon_and_leaves_no_process(folder: Path, number: signal.Signals, code: int) -> None:
    marker = f"E2GAN_TEST_MARK={folder.name}-{code}"
    name, _, value = marker.partition("=")
    storage = folder / f"stopped-{code}"
    log = folder / f"stopped-{code}.txt"
    command = (
        "run",
        "--config",
        str(folder / "run.yaml"),
        "--set",
        f"storage={storage}",
        "--set",
        "base.train.images=100000",
    )
    process = chain_setup.start(*command, log=log, **{name: value})
    try:
        while stage_of(storage) != "base" and process.poll() is None:
            time.sleep(0.1)
        time.sleep(3)
        began = time.monotonic()
        os.kill(process.pid, number)
        assert process.wait(60) == code, log.read_text()[-4000:]
        # 10 s on an idle machine; this one may be busy.
        assert time.monotonic() - began < 30
        deadline = time.monotonic() + 30
        while processes_of(marker) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert processes_of(marker) == []
    finally:
        if process.poll() is None:
            kill_group(process)
    (stages,) = (json.loads(path.read_text()) for path in storage.glob("runs/*/stages.json"))
    assert stages["base"]["state"] == "stopped"
    assert stages["pairs"]["state"] == "done"
