"""Races between processes: ``python race_many.py URL PROCESSES ROUNDS COUNTER_ROUNDS`` prints who won, as JSON."""

import json
import multiprocessing
import os
import random
import sys
import time

from e2gan_cluster.storage import open_store

SHARP_ROUNDS = 3


def _racer(url, rounds, barrier, results, counter_rounds):
    store = open_store(url)
    name = str(os.getpid()).encode()
    won = []
    for number in range(rounds):
        barrier.wait(120)
        # Who finds SeaweedFS's lock of a key taken sleeps for a second or more, so later rounds race less sharply.
        if url.startswith("s3://") and number >= SHARP_ROUNDS:
            time.sleep(random.uniform(0, 0.1))
        won.append(store.put_new(f"race/{number}", name))
    for _ in range(counter_rounds):
        while True:
            data, etag = store.get_with_etag("counter")
            if store.put_if_match("counter", str(int(data) + 1).encode(), etag):
                break
    results.put((os.getpid(), won))


def main(url, processes, rounds, counter_rounds):
    """Fork racers, collect who won."""
    fork = multiprocessing.get_context("fork")
    store = open_store(url)
    store.put("counter", b"0")
    barrier, results = fork.Barrier(processes), fork.Queue()
    arguments = (url, rounds, barrier, results, counter_rounds)
    racers = [fork.Process(target=_racer, args=arguments) for _ in range(processes)]
    for racer in racers:
        racer.start()
    won = dict(results.get(timeout=240) for _ in racers)
    for racer in racers:
        racer.join(60)
    winners = [[pid for pid, rows in won.items() if rows[number]] for number in range(rounds)]
    held = [int(store.get(f"race/{number}")) for number in range(rounds)]
    print(json.dumps({"winners": winners, "held": held, "counter": int(store.get("counter"))}))


if __name__ == "__main__":
    main(sys.argv[1], *(int(value) for value in sys.argv[2:5]))
