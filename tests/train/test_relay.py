"""A worker learns within about a second that its run is to end."""

from types import SimpleNamespace
from typing import Any

import pytest

from e2gan_cluster.errors import TrainingError
from e2gan_cluster.train import relay as relay_module
from e2gan_cluster.train.relay import RayEvents, Relay


@pytest.mark.usefixtures("ray_cluster")
def test_a_training_asks_now_and_then_whether_it_is_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    relay: Any = ray.remote(num_cpus=0)(Relay).remote()
    now = [0.0]
    monkeypatch.setattr(relay_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    events = RayEvents(relay)
    now[0] = 1.5
    events.check()
    ray.get(relay.end.remote())
    now[0] = 2.0
    events.check()  # asked half a second ago
    now[0] = 2.6
    with pytest.raises(TrainingError, match="the run was stopped"):
        events.check()
