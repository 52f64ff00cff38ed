"""Searches on Ray that lose a worker or their driver end with the picks of an unbroken search."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.search.adapt import adapt_concepts
from e2gan_cluster.search.jobs import Job, serve_here
from e2gan_cluster.search.ladder import Wait
from e2gan_cluster.search.records import ConceptResult
from e2gan_cluster.search.tune_loop import TuneSettings, run_on_tune
from e2gan_cluster.storage import keys
from e2gan_cluster.track.mlflow_tracker import NullTracker
from tests import search_world
from tests.search_world import World

TIMEOUT_S = 240


def search(world: World) -> dict[str, ConceptResult]:
    return adapt_concepts(
        world.config, world.store, world.base_id, world.concepts, SilentReporter(), NullTracker(), serve_here
    )


def picks(results: Mapping[str, ConceptResult]) -> dict[str, object]:
    return {name: (r.state, r.pick, r.metric, r.ranks, r.files) for name, r in results.items()}


class Jobs:
    """A source of numbered jobs, three at once at most."""

    def __init__(self, count: int) -> None:
        self.left, self.running = list(range(count)), 0
        self.done: dict[int, Mapping[str, Any]] = {}
        self.failed: dict[int, str] = {}

    def next(self) -> Job | Wait | None:
        if not self.left:
            return None
        return Job("job", {"number": self.left.pop(0)})

    def progress(self, job: Job, row: Mapping[str, Any]) -> None:
        pass

    def report(self, job: Job, outcome: Mapping[str, Any]) -> None:
        self.done[job.payload["number"]] = outcome

    def fail(self, job: Job, reason: str) -> None:
        self.failed[job.payload["number"]] = reason


def make_runner(folder: Path) -> Callable[[Job], Iterator[Mapping[str, Any]]]:
    """Job 1 kills its worker the first time, job 2 always, job 3 raises."""

    def runner(job: Job) -> Iterator[Mapping[str, Any]]:
        number, mark = job.payload["number"], folder / "killed"
        yield {"images": 1}
        if number == 2 or (number == 1 and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 3:
            raise ValueError("broken pairs")
        yield {"outcome": {"pid": os.getpid()}}

    return runner


@pytest.mark.usefixtures("ray_cluster")
def test_killed_workers_are_replaced_and_workers_are_reused(tmp_path: Path) -> None:
    source = Jobs(12)
    run_on_tune(source, make_runner(tmp_path), TuneSettings(num_workers=2, cpus=0.5))
    assert source.failed[3] == "ValueError: broken pairs"
    assert "lost 4 times" in source.failed[2]
    assert sorted(source.done) == [0, 1, *range(4, 12)]
    assert len({outcome["pid"] for outcome in source.done.values()}) < 10, "a worker runs many jobs"


class SlowToStart:
    """A runner of short jobs that all workers but the first need seconds to load."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        try:
            (self.folder / "first").touch(exist_ok=False)
        except FileExistsError:
            time.sleep(2)

    def __call__(self, job: Job) -> Iterator[Mapping[str, Any]]:
        time.sleep(0.02)
        yield {"outcome": {"pid": os.getpid()}}


class UntilTwoWorked(Jobs):
    """Stops as soon as two workers have worked."""

    def pids(self) -> set[int]:
        return {outcome["pid"] for outcome in self.done.values()}

    def next(self) -> Job | Wait | None:
        return None if len(self.pids()) == 2 else super().next()


@pytest.mark.usefixtures("ray_cluster")
def test_all_workers_work_though_jobs_are_shorter_than_the_start_of_a_worker(tmp_path: Path) -> None:
    source = UntilTwoWorked(2000)
    run_on_tune(source, SlowToStart(tmp_path), TuneSettings(num_workers=2, cpus=0.5))
    assert len(source.pids()) == 2
    assert not source.failed


def start_driver(world: World) -> subprocess.Popen[bytes]:
    """The same search in a process of its own, with a Ray of its own."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(search_world.__file__).parents[1])!r})
from pathlib import Path
from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.ray_runtime import ray_session
from e2gan_cluster.search.adapt import adapt_concepts
from e2gan_cluster.search.pool import worker_pool
from e2gan_cluster.storage import open_store
from e2gan_cluster.track.mlflow_tracker import NullTracker
from tests.search_world import EDITS
import signal
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
config = RunConfig.model_validate_json({world.config.model_dump_json()!r})
concepts = [Concept(name, EDITS[name][0]) for name in {[c.name for c in world.concepts]!r}]
store = open_store(config.storage)
with ray_session(config.ray), worker_pool(config) as pool:
    adapt_concepts(config, store, {world.base_id!r}, concepts, SilentReporter(), NullTracker(), pool.serve)
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for_records(world: World, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while sum(1 for info in world.store.list("search/") if info.key.count("/") == 4) < count:
        if process.poll() is not None and process.stderr is not None:
            pytest.fail(f"driver ended with {process.returncode}: {process.stderr.read().decode()[-2000:]}")
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.timeout(600)
def test_search_stopped_then_killed_on_ray_ends_with_the_picks_of_an_unbroken_one(tmp_path: Path) -> None:
    # Long enough trainings that a driver is in mid-search when it is hit.
    options: dict[str, Any] = {"train": {"images": 160}, "rank_multipliers": [1, 2, 4]}
    names = ("invert", "warm", "dark")
    whole = search_world.make_world(tmp_path / "whole", names, **options)
    unbroken = picks(search(whole))
    world = search_world.make_world(tmp_path / "broken", names, **options)
    world.config = world.config.model_copy(update={"ray": world.config.ray.model_copy(update={"num_cpus": 2})})

    process = start_driver(world)
    wait_for_records(world, 1, process)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    assert process.wait(TIMEOUT_S) == 143
    assert time.monotonic() - asked < 60, "SIGTERM ends a search within seconds"
    before = {info.key: info.etag for info in world.store.list("search/")}

    process = start_driver(world)
    wait_for_records(world, 1 + sum(key.count("/") == 4 for key in before), process)
    process.kill()
    process.wait(TIMEOUT_S)

    resumed = search(world)
    assert picks(resumed) == unbroken
    after = {info.key: info.etag for info in world.store.list("search/")}
    records = {key: etag for key, etag in before.items() if key.count("/") == 4}
    assert records.items() <= after.items(), "finished trials were not run again"
    for name, result in resumed.items():
        assert world.store.head(keys.search_result(name, result.fingerprint)) is not None
