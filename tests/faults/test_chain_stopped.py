"""F5: a run stopped politely."""

import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import chain_setup
from tests.chain_setup import kill_group, stage_of

pytestmark = pytest.mark.timeout(900)


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


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cs") as name:
        yield Path(name)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_polite_stop_ends_soon_and_leaves_no_process(folder: Path, number: signal.Signals, code: int) -> None:
    run_file = chain_setup.write_run_file(folder, str(folder / "stopped"))
    marker = f"E2GAN_TEST_MARK={folder.name}-{code}"
    name, _, value = marker.partition("=")
    storage = folder / "stopped"
    log = folder / "stopped.txt"
    command = ("run", "--config", str(run_file), "--set", "base.train.images=100000")
    process = chain_setup.start(*command, log=log, **{name: value})
    try:
        while stage_of(storage) != "base" and process.poll() is None:
            time.sleep(0.1)
        time.sleep(3)
        assert process.poll() is None, log.read_text()[-4000:]
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
