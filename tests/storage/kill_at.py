"""Publishes or pulls and kills itself at a given step: ``python kill_at.py ACTION STEP REGISTRY TARGET``."""

import os
import signal
import sys
from pathlib import Path

from e2gan_cluster.storage import files, open_store
from e2gan_cluster.storage import pull as pulling
from e2gan_cluster.storage.local import LocalStore
from e2gan_cluster.storage.pull_plan import PullRequest
from tests.storage.registry_parts import publish

STEPS = [0]


def die_at(step, where, name):
    """Kill this process before the ``step``-th call of any function so wrapped."""
    original = getattr(where, name)

    def wrapped(*args, **kwargs):
        STEPS[0] += 1
        if STEPS[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(where, name, wrapped)


def main(action, step, registry, target):
    """Run ``publish`` or ``pull`` with a death in it."""
    if action == "publish":
        die_at(step, files, "temp_file")
        die_at(step, files, "place_new")
        die_at(step, files, "place")
        publish(open_store(registry), seed=2)
    else:
        die_at(step, LocalStore, "get_file")
        die_at(step, files, "place")
        for name in ("_swap", "_take_out", "_exchange", "_recover"):
            die_at(step, pulling, name)
        die_at(step, files, "write")
        die_at(step, pulling.shutil, "rmtree")
        pulling.pull(open_store(registry), PullRequest(Path(target), workers=1))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
