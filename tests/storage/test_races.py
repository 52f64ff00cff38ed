"""Racing writers: exactly one winner, no lost update."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2gan_cluster.storage.channels import read_channel
from e2gan_cluster.storage.registry import list_adapters, read_manifest, resolve
from tests.storage.registry_parts import publish

RACE = Path(__file__).with_name("race_many.py")


def test_eight_processes_racing_sixty_times_have_one_winner_each(store):
    done = subprocess.run(
        [sys.executable, str(RACE), store.url, "8", "60", "3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [len(winners) for winners in result["winners"]] == [1] * 60
    assert [winners[0] for winners in result["winners"]] == result["held"]
    assert result["counter"] == 8 * 3


def _at_once(calls):
    """Results of calls that begin together."""
    barrier = threading.Barrier(len(calls))

    def run(call):
        barrier.wait(60)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(run, call) for call in calls]]


def test_racing_uploads_of_large_files_have_one_winner(s3_store, tmp_path):
    paths = [tmp_path / str(i) for i in range(3)]
    for path in paths:
        path.write_bytes(os.urandom(6 << 20))
    for number in range(3):
        key = f"large/{number}"
        won = _at_once([lambda p=path, k=key: (s3_store.put_new_file(k, p), p) for path in paths])
        winners = [path for created, path in won if created]
        assert len(winners) == 1
        assert s3_store.get(key) == winners[0].read_bytes()


def test_racing_publishers_never_mix_versions_and_lose_no_move(store):
    rounds = 60 if store.url.startswith("/") else 8
    for number in range(rounds // 4):
        concept = f"effect-{number}"
        versions = _at_once([lambda c=concept, s=seed: publish(store, c, seed=s % 4) for seed in range(8)])
        assert len(set(versions)) == 4
        for version in set(versions):
            assert read_manifest(store, concept, version).meta["concept"] == concept
        channel = read_channel(store, concept, "latest")
        assert channel is not None
        assert {channel.target.version, *(past.version for past in channel.history)} == set(versions)
        assert resolve(store, concept) in versions
    assert all(not info.problem for info in list_adapters(store))
