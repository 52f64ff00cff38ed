"""Workers that stay: real Ray Tune workers that serve one source after the other."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import StoreError, TrainingError
from e2gan_cluster.search import pool as pool_module
from e2gan_cluster.search.jobs import Job
from e2gan_cluster.search.ladder import Wait
from e2gan_cluster.search.pool import WorkerPool, run_pooled
from e2gan_cluster.search.tune_loop import TuneSettings
from e2gan_cluster.search.worker import prepare_worker
from e2gan_cluster.stages import _room_beside_base
from tests import search_world

pytestmark = pytest.mark.usefixtures("ray_cluster")
TWO = TuneSettings(num_workers=2, cpus=0.5)


class Jobs:
    """Jobs that sleep so many seconds each; a negative one raises in the worker."""

    def __init__(self, *seconds: float) -> None:
        self.left = list(seconds)
        self.pids: list[int] = []
        self.failures: list[str] = []

    def next(self) -> Job | Wait | None:
        return Job("job", {"seconds": self.left.pop(0)}) if self.left else None

    def progress(self, job: Job, row: Mapping[str, Any]) -> None:
        pass

    def report(self, job: Job, outcome: Mapping[str, Any]) -> None:
        self.pids.append(outcome["pid"])

    def fail(self, job: Job, reason: str) -> None:
        self.failures.append(reason)


def sleeper(job: Job) -> Iterator[Mapping[str, Any]]:
    yield {"images": 0}
    time.sleep(job.payload["seconds"])
    yield {"outcome": {"pid": os.getpid()}}


def killed_once(job: Job, mark: Path) -> Iterator[Mapping[str, Any]]:
    yield {"images": 0}
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield {"outcome": {"pid": os.getpid()}}


def test_the_same_workers_serve_every_source_though_one_idles_at_the_end_of_each(tmp_path: Path) -> None:
    with WorkerPool(TWO) as pool:
        first, second, failing, third = Jobs(0.5, 2.5, 0.5), Jobs(*[0.3] * 8), Jobs(-1.0), Jobs(0.0)
        pool.serve(first, sleeper)
        time.sleep(1.0)
        pool.serve(second, sleeper)
        pool.serve(failing, sleeper)
        pool.serve(third, partial(killed_once, mark=tmp_path / "killed"))
    assert len(first.pids) == 3
    assert len(second.pids) == 8
    assert set(first.pids) == set(second.pids)
    assert len(set(second.pids)) == 2
    assert failing.failures == ["ValueError: sleep length must be non-negative"]
    assert third.pids
    assert third.pids[0] not in second.pids, "a killed worker is replaced"
    assert not third.failures


class Refusing(Jobs):
    """Fails while it takes in an outcome, as with storage that is gone."""

    def __init__(self, error: Exception) -> None:
        super().__init__(0.0)
        self.error = error

    def report(self, job: Job, outcome: Mapping[str, Any]) -> None:
        raise self.error


def test_an_error_of_the_source_ends_the_wait_and_is_raised_and_the_pool_goes_on() -> None:
    with WorkerPool(TWO) as pool:
        with pytest.raises(StoreError, match="the bucket is gone"):
            pool.serve(Refusing(StoreError("the bucket is gone")), sleeper)
        after = Jobs(0.0, 0.0)
        pool.serve(after, sleeper)
    assert len(after.pids) == 2


def test_workers_that_end_before_their_work_is_done_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("the head node is gone")

    monkeypatch.setattr(pool_module, "run_on_tune", lost)
    with WorkerPool(TWO) as pool, pytest.raises(TrainingError, match="before their work was done: the head node is"):
        pool.serve(Jobs(0.0), sleeper)


def test_a_pool_that_served_nothing_closes_at_once() -> None:
    before = threading.active_count()
    started = time.monotonic()
    with WorkerPool(TWO):
        pass
    assert time.monotonic() - started < 1
    assert threading.active_count() == before


def test_naps_grow_with_the_time_that_nothing_was_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(pool_module.time, "monotonic", lambda: now[0])
    feed = pool_module._Feed(None)
    naps = []
    for passed in (0.0, 10.0, 60.0, 86_400.0):
        now[0] = 100.0 + passed
        job = feed.next()
        assert isinstance(job, Job)
        naps.append(job.payload["nap_s"])
    assert naps == pytest.approx([0.25, 0.5, 3.0, 5.0])
    feed.close()
    assert feed.next() is None


CALLS: list[int] = []


def prepare(fails: bool) -> None:
    CALLS.append(len(CALLS))
    if fails:
        raise ValueError("the pairs are gone")


@pytest.mark.parametrize("fails", [False, True])
def test_a_worker_prepares_itself_in_its_first_nap_and_survives_a_failure_of_it(fails: bool) -> None:
    CALLS.clear()
    feed = pool_module._Feed(partial(prepare, fails))
    for _ in range(3):
        job = feed.next()
        assert isinstance(job, Job)
        assert [*run_pooled(replace(job, payload=job.payload | {"nap_s": 0.0}))] == [{"outcome": {}}]
    assert len(CALLS) == 1


def test_a_prepared_worker_has_the_features_of_the_photos_in_the_store(tmp_path: Path) -> None:
    world = search_world.make_world(tmp_path, ("invert",), subset="cluster")
    features = [info.key for info in world.store.list() if "feature" in info.key]
    assert features == []
    prepare_worker(world.config, world.store.url, world.concepts[0])
    assert len([info.key for info in world.store.list() if "feature" in info.key]) == 1


@pytest.mark.parametrize(
    ("worker_cpus", "address", "cluster_address", "room"),
    [(0.5, None, None, True), (0.9, None, None, False), (0.5, "auto", None, False), (0.5, None, "host:6379", False)],
)
def test_workers_start_beside_the_base_only_where_both_fit_on_a_ray_of_this_machine(
    worker_cpus: float, address: str | None, cluster_address: str | None, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if cluster_address:
        monkeypatch.setenv("RAY_ADDRESS", cluster_address)
    search = {"worker_cpus": worker_cpus, "num_workers": 2}
    config = RunConfig.model_validate({"search": search, "ray": {"address": address}})
    assert _room_beside_base(config) == room
