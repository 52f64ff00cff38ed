"""F3, F4: a driver killed in any stage."""

import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2gan_cluster.storage import open_store
from e2gan_cluster.storage.registry import read_manifest, resolve
from tests import chain_setup
from tests.chain_setup import kill_group, stage_of

pytestmark = pytest.mark.timeout(900)


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
    for stage in chain_setup.STAGES:
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
