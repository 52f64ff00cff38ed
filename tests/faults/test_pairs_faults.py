"""Pair generation is killed, hung, fed bad edits, robbed of its storage; numbers are those of the list of faults."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import IntegrityError, StoreError
from e2gan_cluster.pairs import worker
from e2gan_cluster.pairs.generate import generate_pairs, run_local
from e2gan_cluster.pairs.plan import plan_items, plan_shards, row_seed
from e2gan_cluster.pairs.scan import scan_photos
from e2gan_cluster.pairs.shards import load_pairs
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.storage import open_store
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.storage.local import LocalStore
from tests.pairs.pairs_setup import INVERT, OTHER, config_for, write_photos

QUIET = SilentReporter()


def shard_files(store: ObjectStore, concept: str) -> dict[str, bytes]:
    found = [info.key for info in store.list(f"pairs/{concept}/")]
    return {key: store.get(key) for key in found if key.endswith((".parquet", ".done.json"))}


def status(store: ObjectStore, concept: str) -> dict[str, object]:
    return json.loads(store.get(f"pairs/{concept}/status.json"))


def unbroken(config: RunConfig, folder: Path, concept: Concept) -> dict[str, bytes]:
    store = open_store(folder)
    run_local(config, store, [concept], QUIET)
    return shard_files(store, concept.name)


def test_f1_killed_worker_gives_the_same_shards(tmp_path: Path, ray_cluster: None) -> None:
    config = config_for(write_photos(tmp_path / "photos", 16), tmp_path / "store")
    killer = Concept("killer", f"kill-once={tmp_path / 'flag'} now")
    store = open_store(config.storage)
    result = generate_pairs(config, store, [killer], QUIET)["killer"]
    assert result.failure is None
    assert (tmp_path / "flag").exists()
    assert "died" in str(status(store, "killer")["incidents"])
    assert shard_files(store, "killer") == unbroken(config, tmp_path / "clean", killer)


def test_f6_hanging_worker_is_ended_and_its_shard_made_elsewhere(tmp_path: Path, ray_cluster: None) -> None:
    config = config_for(write_photos(tmp_path / "photos", 8), tmp_path / "store", shard_timeout_s=2.0)
    sleeper = Concept("sleeper", f"hang-once={tmp_path / 'flag'} now")
    store = open_store(config.storage)
    result = generate_pairs(config, store, [sleeper], QUIET)["sleeper"]
    assert result.failure is None
    incidents = status(store, "sleeper")["incidents"]
    assert "took longer than 2 s" in str(incidents)
    assert shard_files(store, "sleeper") == unbroken(config, tmp_path / "clean", sleeper)


def test_a_shard_that_kills_its_process_twice_fails_its_concept_only(tmp_path: Path, ray_cluster: None) -> None:
    config = config_for(write_photos(tmp_path / "photos", 16), tmp_path / "store")
    items = plan_items(scan_photos(config.photos).origins, config)["train"]
    seed = row_seed(config.seed, items[0].source_id, 0, "poison")
    poison = Concept("poison", f"kill={seed} always")
    store = open_store(config.storage)
    results = generate_pairs(config, store, [poison, INVERT], QUIET)
    assert results["invert"].failure is None
    assert "could not be made" in str(results["poison"].failure)
    lost = plan_shards(items, "train", poison, config)[0].name
    assert lost in str(status(store, "poison")["lost_shards"])


DRIVER = """
import sys
from pathlib import Path
from e2gan_cluster.config import RunConfig
from e2gan_cluster.concepts import Concept
from e2gan_cluster.pairs.generate import generate_pairs, run_local
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.storage import open_store
config = RunConfig.model_validate_json(Path(sys.argv[1]).read_text())
run = generate_pairs if sys.argv[2] == "ray" else run_local
run(config, open_store(config.storage), [Concept("slow", "sleep=0.05 it")], SilentReporter())
"""


def test_f3_f5_killed_drivers_and_a_lost_ray_leave_work_that_is_gone_on_with(tmp_path: Path) -> None:
    slow = Concept("slow", "sleep=0.05 it")
    config = config_for(write_photos(tmp_path / "photos", 48), tmp_path / "store", worker_cpus=0.5)
    config = config.model_copy(update={"ray": config.ray.model_copy(update={"num_cpus": 2})})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    store = open_store(config.storage)

    def markers() -> int:
        return sum(info.key.endswith(".done.json") for info in store.list("pairs/slow/"))

    made = 0
    # Killed when one more shard is finished, somewhere in the next; Ray dies with the driver that started it.
    for kind in ("ray", "local", "local"):
        process = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path / "config.json"), kind], env=os.environ)
        deadline = time.monotonic() + 150
        while markers() <= made and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, "the driver ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert markers() > made
        made = markers()
    result = run_local(config, store, [slow], QUIET)["slow"]
    assert result.failure is None
    assert shard_files(store, "slow") == unbroken(config, tmp_path / "clean", slow)


def test_f19_half_written_shard_is_replaced(tmp_path: Path) -> None:
    config = config_for(write_photos(tmp_path / "photos", 12), tmp_path / "store")
    expected = unbroken(config, tmp_path / "clean", INVERT)
    store = open_store(config.storage)
    name = next(key for key in expected if key.endswith(".parquet"))
    store.put(name, expected[name][:100])
    assert run_local(config, store, [INVERT], QUIET)["invert"].failure is None
    assert shard_files(store, "invert") == expected


@pytest.mark.parametrize("damage", ["truncated", "bit", "missing", "rows", "marker"])
def test_f20_f21_damaged_shard_is_refused_named_and_made_again(tmp_path: Path, damage: str) -> None:
    config = config_for(write_photos(tmp_path / "photos", 12), tmp_path / "store")
    store = open_store(config.storage)
    run_local(config, store, [INVERT], QUIET)
    expected = shard_files(store, "invert")
    shard = sorted(key for key in expected if "train" in key and key.endswith(".parquet"))[0]
    marker = shard.replace(".parquet", ".done.json")
    data = bytearray(expected[shard])
    if damage == "truncated":
        store.put(shard, bytes(data[:-7]))
    elif damage == "bit":
        data[len(data) // 2] ^= 1
        store.put(shard, bytes(data))
    elif damage == "missing":
        store.delete(shard)
    elif damage == "rows":
        store.put(marker, expected[marker].replace(b'"rows": ', b'"rows": 1'))
    else:
        store.put(marker, b"{")
    if damage in ("truncated", "bit", "missing"):
        with pytest.raises(IntegrityError, match=Path(shard).stem):
            load_pairs(store, INVERT, "train", config)
    assert run_local(config, store, [INVERT], QUIET)["invert"].failure is None
    assert Path(shard).stem in str(status(store, "invert")["incidents"])
    assert shard_files(store, "invert") == expected
    load_pairs(store, INVERT, "train", config)


def test_f34_unusable_edits_are_dropped_and_counted(tmp_path: Path) -> None:
    config = config_for(write_photos(tmp_path / "photos", 60), tmp_path / "store")
    store = open_store(config.storage)
    edits = {kind: Concept(kind, f"{kind}=0.2 of them") for kind in ("black", "small", "raise")}
    results = run_local(config, store, list(edits.values()), QUIET)
    for kind, status_code in (("black", "black"), ("small", "wrong-size"), ("raise", "teacher-error")):
        result = results[kind]
        assert result.failure is None
        assert set(result.dropped) == {status_code}
        assert result.train_ok + result.heldout_ok + result.dropped[status_code] == 60
        pairs = load_pairs(store, edits[kind], "train", config)
        assert len(pairs) == result.train_ok


def test_f34_concept_with_too_many_unusable_edits_stops_and_others_go_on(tmp_path: Path) -> None:
    config = config_for(write_photos(tmp_path / "photos", 60), tmp_path / "store")
    store = open_store(config.storage)
    bad, broken = Concept("bad", "black=0.9 of them"), Concept("broken", "raise=1.5 always")
    results = run_local(config, store, [bad, broken, INVERT], QUIET)
    assert results["invert"].failure is None
    assert "black" in str(results["bad"].failure)
    assert "told to fail" in str(results["broken"].failure)
    record = status(store, "bad")
    assert record["state"] == "failed"
    made = sum(key.endswith(".parquet") for key in shard_files(store, "bad"))
    assert 0 < made < sum(key.endswith(".parquet") for key in shard_files(store, "invert"))
    # The same command says the same and does not try again for hours.
    assert run_local(config, store, [bad], QUIET, teacher=object())["bad"].failure  # pyright: ignore[reportArgumentType]


class FailingStore(LocalStore):
    """Refuses the first writes."""

    def __init__(self, root: Path, failures: int) -> None:
        super().__init__(root)
        self.failures = failures

    def put_new(self, key: str, data: bytes) -> bool:
        if self.failures > 0:
            self.failures -= 1
            raise StoreError("storage is away")
        return super().put_new(key, data)


def test_storage_that_is_away_for_a_while_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_RETRY_WAITS_S", (0.01,) * 5)
    config = config_for(write_photos(tmp_path / "photos", 12), tmp_path / "store")
    store = FailingStore(tmp_path / "store", failures=4)
    assert run_local(config, store, [INVERT], QUIET)["invert"].failure is None
    assert shard_files(store, "invert") == unbroken(config, tmp_path / "clean", INVERT)


def test_storage_that_stays_away_stops_the_run_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_RETRY_WAITS_S", (0.01,))
    config = config_for(write_photos(tmp_path / "photos", 24), tmp_path / "store")
    with pytest.raises(StoreError, match="away"):
        run_local(config, FailingStore(tmp_path / "store", failures=9), [INVERT], QUIET)
    store = open_store(config.storage)
    assert run_local(config, store, [INVERT], QUIET)["invert"].failure is None
    assert shard_files(store, "invert") == unbroken(config, tmp_path / "clean", INVERT)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import StoreError
from e2gan_cluster.pairs import worker
from e2gan_cluster.pairs.generate import run_local
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.storage import open_store
from tests.pairs.pairs_setup import INVERT
worker._RETRY_WAITS_S = ()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
config = RunConfig.model_validate_json(Path(sys.argv[1]).read_text())
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    run_local(config, open_store(config.storage), [INVERT], SilentReporter())
except StoreError as error:
    print(error)
    sys.exit(7)
"""


def test_f27_full_disk_leaves_no_partial_shard_and_says_where(tmp_path: Path) -> None:
    config = config_for(write_photos(tmp_path / "photos", 24), tmp_path / "store")
    (tmp_path / "config.json").write_text(config.model_dump_json())
    expected = unbroken(config, tmp_path / "clean", INVERT)
    limit = min(len(data) for key, data in expected.items() if key.endswith(".parquet")) + 1
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "config.json"), str(limit)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 7, run.stderr
    assert str(tmp_path / "store") in run.stdout
    store = open_store(config.storage)
    half = {key: data for key, data in shard_files(store, "invert").items() if expected[key] != data}
    assert not half
    assert run_local(config, store, [INVERT], QUIET)["invert"].failure is None
    assert shard_files(store, "invert") == expected


def test_one_concept_does_not_touch_another(tmp_path: Path) -> None:
    config = config_for(write_photos(tmp_path / "photos", 12), tmp_path / "store")
    store = open_store(config.storage)
    run_local(config, store, [INVERT], QUIET)
    before = shard_files(store, "invert")
    run_local(config, store, [OTHER], QUIET)
    assert shard_files(store, "invert") == before
