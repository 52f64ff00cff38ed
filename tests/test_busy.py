"""The count of seconds spent on edits, training and measuring."""

import time
from pathlib import Path

import numpy as np
import pytest

from e2gan_cluster import busy
from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.pairs.generate import run_local
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.stages import Outcome
from e2gan_cluster.storage import open_store


def test_work_inside_work_counts_once() -> None:
    busy.take_s()
    start_s = time.perf_counter()
    with busy.working():
        with busy.working():
            time.sleep(0.02)
        busy.add(100.0)
    elapsed_s = time.perf_counter() - start_s
    assert 0.02 <= busy.take_s() <= elapsed_s
    assert busy.take_s() == 0


def test_a_failing_block_counts_and_leaves_the_clock_in_order() -> None:
    busy.take_s()
    with pytest.raises(RuntimeError), busy.working():
        raise RuntimeError
    assert busy.take_s() > 0
    busy.add(2.0)
    assert busy.take_s() == pytest.approx(2.0)


class SlowTeacher:
    """Inverts photos, slowly."""

    fingerprint = "slow"

    def edit(self, images_BHWC: np.ndarray, *_: object, **__: object) -> np.ndarray:
        time.sleep(0.05)
        return 255 - images_BHWC


def test_a_teachers_seconds_are_counted(tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {
            "storage": str(tmp_path),
            "photos": {"limit": 4},
            "teacher": {"backend": "custom", "model": "benchmarks.noop_teacher:make", "batch_size": 1},
            "pairs": {"resolution": 32},
        }
    )
    before_s = busy.total_s()
    concepts = [Concept("inverted", "invert it")]
    results = run_local(config, open_store(config.storage), concepts, SilentReporter(), teacher=SlowTeacher())
    rows = results["inverted"].train_ok + results["inverted"].heldout_ok
    assert rows
    assert busy.total_s() - before_s >= 0.05 * rows


def test_what_a_run_spent_beside_its_work_adds_up() -> None:
    outcome = Outcome(
        stages={
            "pairs": {"state": "done", "seconds": 10.0, "busy_s": 7.0},
            "report": {"state": "done", "seconds": 2.0, "busy_s": 0.0},
        }
    )
    assert outcome.outside(15.0) == {"start": 3.0, "pairs": 3.0, "report": 2.0}
