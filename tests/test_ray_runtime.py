"""Starting Ray on a machine that has little time for it."""

import pytest
import ray

from e2gan_cluster.config import RayConfig
from e2gan_cluster.errors import UserError
from e2gan_cluster.ray_runtime import ray_session

LATE = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


class Starts:
    """Stands for `ray.init` on a busy machine."""

    def __init__(self, failures: list[str]) -> None:
        self.failures, self.calls = failures, 0

    def __call__(self, **_: object) -> None:
        self.calls += 1
        if self.failures:
            raise Exception(self.failures.pop(0))


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)


def start(monkeypatch: pytest.MonkeyPatch, *failures: str) -> Starts:
    starts = Starts(list(failures))
    monkeypatch.setattr(ray, "init", starts)
    return starts


def test_a_ray_that_starts_late_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = start(monkeypatch, LATE)
    with ray_session(RayConfig()):
        assert starts.calls == 2


def test_a_ray_that_never_starts_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, LATE, LATE, LATE, LATE)
    with pytest.raises(UserError, match="did not start"), ray_session(RayConfig()):
        pass


def test_other_errors_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = start(monkeypatch, "something else")
    with pytest.raises(Exception, match="something else"), ray_session(RayConfig()):
        pass
    assert starts.calls == 1
