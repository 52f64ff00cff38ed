"""A whole run in seconds: a fake editor, tiny networks, every stage real."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from e2gan_cluster.storage.base import ObjectStore
from tests.pairs.pairs_setup import write_photos

ROOT = Path(__file__).resolve().parents[1]
BASE = ("invert", "dim")
NEW = ("negative", "ghost")
TIMEOUT_S = 800
STAGES = ("pairs", "base", "layers", "adapt", "publish")


def write_run_file(folder: Path, storage: str, bad: bool = False) -> Path:
    """A run file with 2 base concepts and 2 new ones; ``bad`` adds one whose every edit is black."""
    write_photos(folder / "photos", 14)
    concepts = [{"name": name, "prompt": f"make it {name}"} for name in (*BASE, *NEW)]
    if bad:
        concepts.append({"name": "broken", "prompt": "make it black=1.0"})
    (folder / "concepts.yaml").write_text(yaml.safe_dump(concepts))
    train = {"images": 24, "batch_size": 4, "checkpoint_images": 8, "eval_images": 24, "ema_images": 8}
    run = {
        "name": "tiny",
        "storage": storage,
        "photos": {"source": str(folder / "photos"), "heldout_fraction": 0.3},
        "concepts": {"catalogue": str(folder / "concepts.yaml"), "base": list(BASE)},
        "teacher": {"backend": "custom", "model": "tests.fake_editor:make", "batch_size": 4},
        "pairs": {"resolution": 32, "pairs_per_concept": 8, "rows_per_shard": 8, "max_workers": 1},
        "nets": {"width": 8, "disc_width": 8},
        "base": {"train": train},
        "search": {
            "train": {**train, "images": 16},
            "metric": "l1",
            "probe_concepts": 1,
            "probe_images": 8,
            "rank_multipliers": [1, 2],
            "data_sizes": [4, 8],
            "num_workers": 1,
        },
        "publish": {"formats": ["onnx-adapter", "merged"]},
        "ray": {"num_cpus": 2},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def environment(**extra: str) -> dict[str, str]:
    """For the CLI as a user's process; workers find the tests' fake editor."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra}


def start(*arguments: str, log: Path, **env: str) -> "subprocess.Popen[bytes]":
    """``e2gan ARGUMENTS`` in a process group of its own, output to ``log``."""
    command = [sys.executable, "-m", "e2gan_cluster.cli", *arguments]
    with log.open("ab") as stream:
        return subprocess.Popen(
            command,
            env=environment(**env),
            cwd=ROOT,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            # A test run started in the background ignores Ctrl-C, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def run(*arguments: str, log: Path, **env: str) -> int:
    """Exit code of ``e2gan ARGUMENTS``."""
    return start(*arguments, log=log, **env).wait(TIMEOUT_S)


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


def published(store: ObjectStore) -> dict[str, str]:
    """Key -> etag of everything a reader of the registry sees, but for the times that manifests carry."""
    return {
        info.key: info.etag
        for prefix in ("adapters/", "base/", "mobile/")
        for info in store.list(prefix)
        if not info.key.endswith((".json", "card.md"))
    }
