"""Status and plan read storage alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from e2gan_cluster.batch import Batch, open_batch
from e2gan_cluster.config import RunConfig
from e2gan_cluster.config_io import load_config
from e2gan_cluster.cost import make_plan
from e2gan_cluster.plan_table import plan_line, print_plan, print_status, status_json
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.status import Heartbeat, batch_status, request_stop
from e2gan_cluster.storage import keys

BASE = ["sepia", "oil"]
SEARCH = "a" * 12


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    catalogue = tmp_path / "concepts.yaml"
    catalogue.write_text("".join(f"- {{name: {name}, prompt: make it {name}}}\n" for name in [*BASE, "snow", "neon"]))
    return load_config(
        None,
        [
            f"storage={tmp_path / 'run'}",
            f"concepts.catalogue={catalogue}",
            f"concepts.base={json.dumps(BASE)}",
            "photos.limit=20",
        ],
    )


@pytest.fixture
def batch(config: RunConfig) -> Batch:
    return open_batch(config)


def put(batch: Batch, key: str, **record: object) -> None:
    batch.store.put(key, json.dumps(record).encode())


def pairs_record(seconds: float) -> dict[str, object]:
    """As `pairs.ledger.status_record` writes it."""
    return {"counts": {"ok": 20}, "splits": {"train": {"counts": {"ok": 15}}}, "seconds": seconds, "failure": None}


def test_an_untouched_batch_waits(batch: Batch) -> None:
    status = batch_status(batch)
    assert status.running == "not started"
    assert [row.state for row in status.rows] == ["waiting"] * 4


def test_each_concept_shows_how_far_it_is(batch: Batch) -> None:
    for name in (*BASE, "snow", "neon"):
        put(batch, keys.pairs_status(name), **pairs_record(seconds=36.0))
    put(batch, keys.search_trial("neon", SEARCH, "r1-n50-s0"))
    put(batch, keys.search_trial("snow", SEARCH, "r1-n50-s0"))
    put(
        batch, keys.search_result("snow", SEARCH),
        state="done", metric=0.12, rank_multiplier=2, data_size=50, seconds=64.0,
    )  # fmt: skip

    rows = {row.concept: row for row in batch_status(batch).rows}

    assert rows["sepia"].state == "pairs"
    assert (rows["neon"].state, rows["neon"].trials) == ("searching", 1)
    assert (rows["snow"].state, rows["snow"].metric, rows["snow"].pick) == ("adapted", 0.12, "2x rank, 50 pairs")
    assert rows["snow"].cost == pytest.approx(100 / 3600 * batch.config.costs.machine_per_hour)


def test_a_published_concept_names_its_version(batch: Batch) -> None:
    put(batch, keys.search_result("snow", SEARCH), state="done", metric=0.1, rank_multiplier=1, data_size=50)
    put(batch, keys.search_file("snow", SEARCH, "published.json"), version="abc123")
    row = {row.concept: row for row in batch_status(batch).rows}["snow"]
    assert (row.state, row.version) == ("published", "abc123")


def test_a_failed_concept_keeps_its_reason(batch: Batch) -> None:
    put(batch, keys.pairs_status("neon"), splits={}, failure="40 of 40 pairs dropped: flat")
    row = {row.concept: row for row in batch_status(batch).rows}["neon"]
    assert row.state == "failed"
    assert "flat" in row.reason


def test_hostile_text_in_a_record_is_shown_and_not_interpreted(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(batch, keys.pairs_status("neon"), splits={}, failure="[bold red]boom[/bold red] [/nope]")
    print_status(batch_status(batch))
    assert "[bold red]boom[/bold red] [/nope]" in capsys.readouterr().out


def test_status_as_json_is_json(batch: Batch) -> None:
    assert json.loads(status_json(batch_status(batch)))["rows"][0]["concept"] == "sepia"


def test_heartbeat_tells_a_running_batch_from_an_ended_one(batch: Batch) -> None:
    with Heartbeat(batch, SilentReporter()) as beat:
        beat.start("pairs", 10, "pairs")
        assert batch_status(batch).running.startswith("running on")
    assert batch_status(batch).running == "ended (done)"


def test_stop_request_ends_a_run_elsewhere(batch: Batch, config: RunConfig, tmp_path: Path) -> None:
    script = (
        "import json, pathlib, signal, sys, time\n"
        "import e2gan_cluster.status as status\n"
        "from e2gan_cluster.batch import open_batch\n"
        "from e2gan_cluster.config import RunConfig\n"
        "from e2gan_cluster.progress import SilentReporter\n"
        "status.HEARTBEAT_S = 0.2\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "batch = open_batch(RunConfig(**json.loads(pathlib.Path(sys.argv[1]).read_text())))\n"
        "with status.Heartbeat(batch, SilentReporter()):\n"
        "    print('up', flush=True)\n"
        "    time.sleep(120)\n"
    )
    dumped = tmp_path / "config.json"
    dumped.write_text(config.model_dump_json())
    process = subprocess.Popen([sys.executable, "-c", script, str(dumped)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "up"
    request_stop(batch)
    assert process.wait(60) == 143
    assert batch_status(batch).running == "ended (stopped)"


def test_a_killed_run_is_called_silent_once_its_heartbeat_is_old(batch: Batch) -> None:
    put(
        batch, keys.run_status(batch.fingerprint, "heartbeat.json"),
        at="2020-01-01T00:00:00+00:00", host="h", pid=1, tasks={}, ended=None,
    )  # fmt: skip
    assert "silent" in batch_status(batch).running


def test_plan_shrinks_as_work_is_done(batch: Batch, config: RunConfig) -> None:
    before = make_plan(config)
    for name in (*BASE, "snow", "neon"):
        put(batch, keys.pairs_status(name), **pairs_record(seconds=4.0))
    put(batch, keys.search_result("snow", SEARCH), state="done", metric=0.1, rank_multiplier=1, data_size=50)
    after = make_plan(config)

    assert before.total.pairs == 4 * 20
    assert after.total.pairs == 0
    assert after.total.images.high < before.total.images.high
    assert after.total.cost.likely < before.total.cost.likely
    assert "measured on this storage" in after.sources[0]


def test_plan_ranges_are_ordered_and_priced(config: RunConfig) -> None:
    total = make_plan(config).total
    assert total.seconds.low < total.seconds.likely < total.seconds.high
    assert total.cost.likely == pytest.approx(total.seconds.likely / 3600 * config.costs.machine_per_hour)


def test_plan_prints_every_concept_and_a_line(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(config)
    print_plan(plan)
    out = capsys.readouterr().out
    assert all(name in out for name in (*BASE, "snow", "neon", "base", "total"))
    assert "80 pairs" in plan_line(plan)


def test_plan_starts_without_torch_and_ray(config: RunConfig, tmp_path: Path) -> None:
    script = (
        "import sys, json, pathlib\n"
        "from e2gan_cluster.config import RunConfig\n"
        "from e2gan_cluster.cost import make_plan\n"
        "make_plan(RunConfig(**json.loads(pathlib.Path(sys.argv[1]).read_text())))\n"
        "print([name for name in ('torch', 'ray', 'diffusers', 'mlflow') if name in sys.modules])\n"
    )
    dumped = tmp_path / "config.json"
    dumped.write_text(config.model_dump_json())
    done = subprocess.run([sys.executable, "-c", script, str(dumped)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plan_takes_a_gpus_figures_where_workers_have_one(config: RunConfig) -> None:
    hub = config.teacher.model_copy(update={"model": "timbrooks/instruct-pix2pix", "steps": 40})
    gpu = config.model_copy(
        update={
            "teacher": hub,
            "base": config.base.model_copy(update={"worker_gpus": 1.0}),
            "search": config.search.model_copy(update={"worker_gpus": 0.25}),
        }
    )
    on_cpu, on_gpu = make_plan(config), make_plan(gpu)
    assert "0.440 s an image, table, Stable Diffusion 1.5 on one H200" in on_gpu.sources[0]
    assert "one H200" in on_gpu.sources[1]
    assert on_gpu.rows[0].seconds.likely < on_cpu.rows[0].seconds.likely / 10


def test_a_stage_that_was_found_finished_shows_how_long_its_work_took(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {"base": {"state": "done", "seconds": 2.0, "work_s": 65.0}, "adapt": {"state": "done", "seconds": 9.0}}
    put(batch, keys.run_status(batch.fingerprint, "stages.json"), **stages)
    print_status(batch_status(batch))
    printed = capsys.readouterr().out
    assert "base: done 65 s" in printed
    assert "adapt: done 9 s" in printed
