"""Starting or joining Ray, in one place, for every driver.

Example:
    with ray_session(config.ray):
        generate_pairs(config, store, concepts, reporter)
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from e2gan_cluster.config import RayConfig
from e2gan_cluster.errors import UserError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_START_ATTEMPTS = 3
_LATE = "timed out during startup"


@contextmanager
def ray_session(config: RayConfig) -> Iterator[None]:
    """Join the cluster at ``config.address``, or start Ray on this machine for the time of the block.

    Inside a Ray job, or where Ray is initialised already, that cluster is used and left running. Ray's own
    SIGTERM handler aborts the driver without unwinding, so the handlers found at entry are put back.

    Raises:
        UserError: No cluster answers at ``config.address``, or Ray does not start here.
    """
    _set_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    # A Ray job's driver finds its cluster through RAY_ADDRESS, set by the job manager.
    address = config.address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        else:
            # Else Ray leaves a token file in the home folder, and every later `ray job` command asks for it.
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            _start_here(config)
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers at {address}: {error}",
            "start one with `ray start --head`, or leave ray.address empty to use this machine",
        ) from error
    _restore(handlers)
    try:
        yield
    finally:
        ray.shutdown()
        _restore(handlers)


def _start_here(config: RayConfig) -> None:
    """Start Ray on this machine; once more where its processes took longer than the 30 s that Ray gives them."""
    import ray

    for _ in range(_START_ATTEMPTS):
        try:
            ray.init(
                num_cpus=config.num_cpus,
                include_dashboard=config.dashboard,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        except Exception as error:  # Ray has no narrower class for it
            if _LATE not in str(error):
                raise
            ray.shutdown()
        else:
            return
    raise UserError(
        f"Ray did not start on this machine in {_START_ATTEMPTS} attempts of 30 s",
        "other programs may take all processors: run the same command again later",
    )


def _set_environment() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Workers inherit it and would compile every module again at each start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, handler)
