"""Pre-training of the base on Ray Train; the same function runs without Ray.

The workers' checkpoints go to the run's own storage, so the same command resumes after the loss of a worker, of the
driver, or of the whole cluster. Every worker holds all pairs in memory and takes its share of each batch by position:
one worker or several see the same samples.

Example:
    base_id = pretrain_base(config, store, concepts, reporter)
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from e2gan_cluster import busy
from e2gan_cluster.concepts import Concept, load_catalogue
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import InputError, TrainingError, UserError
from e2gan_cluster.progress import Reporter
from e2gan_cluster.storage import open_store
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.train.base_concepts import BaseChoice, choose_base_concepts
from e2gan_cluster.train.base_store import base_fingerprint, finished_base
from e2gan_cluster.train.base_worker import BaseSpec, train_base
from e2gan_cluster.train.distributed import this_worker
from e2gan_cluster.train.events import Listener, Silent, TrackerLike
from e2gan_cluster.train.relay import RayEvents, Relay

_POLL_S = 0.2
_STOP_S = 20.0


def base_done(config: RunConfig, store: ObjectStore, base_concepts: Sequence[Concept]) -> str | None:
    """The published base of this config and these concepts, or None if it is not trained yet."""
    return finished_base(store, base_fingerprint(config, base_concepts))


def pretrain_base(
    config: RunConfig,
    store: ObjectStore,
    base_concepts: Sequence[Concept],
    reporter: Reporter,
    tracker: TrackerLike | None = None,
    on_begun: Callable[[], None] = lambda: None,
) -> str:
    """Trains and publishes the base on Ray Train; returns at once if that is done.

    Ray is joined or started as ``config.ray`` says, if it is not running in this process.

    Args:
        config: Run config.
        store: Pairs, checkpoints and the published base; workers open it by its URL.
        base_concepts: Concepts with finished pairs.
        reporter: Progress.
        tracker: MLflow.
        on_begun: Called when the workers have started and train.

    Returns:
        ``base_id``.

    Raises:
        TrainingError: No pairs, a loss that is not finite, or workers lost too often.
        IntegrityError: A shard is missing or damaged.
    """
    from e2gan_cluster.ray_runtime import ray_session

    done = base_done(config, store, base_concepts)
    if done is not None:
        return done
    spec = _spec(config, base_concepts)
    listener = Listener("base", reporter, tracker, on_begun=on_begun)
    ok = False
    try:
        with ray_session(config.ray):
            base_id = _run_on_ray(spec, store.url, listener)
        ok = True
    finally:
        listener.close(ok)
    return base_id


def train_base_local(
    config: RunConfig,
    store: ObjectStore,
    base_concepts: Sequence[Concept],
    reporter: Reporter,
    tracker: TrackerLike | None = None,
) -> str:
    """`pretrain_base` in this process, without Ray; one worker, same result."""
    done = base_done(config, store, base_concepts)
    if done is not None:
        return done
    listener = Listener("base", reporter, tracker)
    device = _device(config)
    ok = False
    try:
        base_id = train_base(_spec(config, base_concepts), store, listener, device=device)
        ok = True
    finally:
        listener.close(ok)
    assert base_id is not None
    return base_id


def _spec(config: RunConfig, concepts: Sequence[Concept]) -> BaseSpec:
    if not concepts:
        raise InputError("there are no base concepts", "name some in concepts.base")
    return BaseSpec(config, tuple(concepts), base_fingerprint(config, concepts), _choice(config))


def _choice(config: RunConfig) -> BaseChoice:
    """Why these concepts; chosen again here, which gives the same, since workers may not have the catalogue's file."""
    if config.concepts.base:
        return choose_base_concepts(config, [], None)
    from e2gan_cluster.text.encoder import PromptEncoder

    encoder = PromptEncoder(max_tokens=config.nets.text_tokens)
    return choose_base_concepts(config, load_catalogue(config.concepts.catalogue), encoder)


def _device(config: RunConfig) -> str:
    import torch

    return "cuda" if config.base.worker_gpus > 0 and torch.cuda.is_available() else "cpu"


def _worker(settings: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    import ray
    from ray.train.torch import get_device

    relay = settings["relay"]
    if ray.get(relay.ended.remote()):
        return
    workers = this_worker()
    events = RayEvents(relay) if workers.rank == 0 else Silent()
    spec: BaseSpec = settings["spec"]
    device = get_device() if spec.config.base.worker_gpus > 0 else "cpu"
    try:
        train_base(spec, open_store(settings["storage"]), events, workers, device)
    except UserError as error:
        # A restart would meet the same data and numbers: tell the driver, and let no further attempt begin.
        ray.get(relay.fail.remote(error))
        if workers.size > 1:  # the others wait for this one's gradients: end them
            raise


def _run_on_ray(spec: BaseSpec, storage: str, listener: Listener) -> str:
    # How often Ray Train looks at its workers: at its own 2 s, a finished training is noticed that late.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if not (spec.config.ray.address or os.environ.get("RAY_ADDRESS")):
        # No cloud takes nodes away from a Ray that was started on this machine.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchTrainer

    base = spec.config.base
    relay = ray.remote(num_cpus=0)(Relay).remote()
    resources = {"CPU": base.worker_cpus} | ({"GPU": base.worker_gpus} if base.worker_gpus else {})
    with tempfile.TemporaryDirectory(prefix="e2gan-base-") as folder:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"spec": spec, "storage": storage, "relay": relay},
            scaling_config=ScalingConfig(
                num_workers=base.num_workers, use_gpu=base.worker_gpus > 0, resources_per_worker=resources
            ),
            run_config=RayRunConfig(
                name=f"base-{spec.fingerprint[:12]}-{time.time_ns()}",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=base.max_failures),
            ),
        )
        _fit(trainer, relay, listener)
    if listener.published is None:
        raise TrainingError("the base was not published", "see the messages above, and run the same command again")
    return listener.published


def _fit(trainer: Any, relay: Any, listener: Listener) -> None:
    """Runs the trainer in a thread and hands its workers' events on; this thread stays open to signals."""
    import ray

    outcome: list[BaseException] = []
    # A join that a signal interrupts takes a running thread for ended (Python 3.11, bpo-45274).
    ended = threading.Event()

    def run() -> None:
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001 - raised again below, in the caller's thread
            outcome.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    try:
        while not ended.wait(_POLL_S):
            _hand_on(relay, listener)
    except BaseException:
        ray.get(relay.end.remote())
        # The workers ask about once a second. A thread that is still in Ray when Ray is shut down would end the
        # process at once, with code 1.
        ended.wait(_STOP_S)
        raise
    _hand_on(relay, listener)
    failure: UserError | None = ray.get(relay.failure.remote())
    if failure is not None:
        raise failure
    if outcome and listener.published is None:
        raise TrainingError(
            f"Ray Train gave up: {_root(outcome[0])}",
            "run the same command again: it goes on from the newest checkpoint; raise base.max_failures if workers"
            " are lost often",
        ) from outcome[0]


def _hand_on(relay: Any, listener: Listener) -> None:
    import ray

    events, work_s = ray.get(relay.drain.remote())
    busy.add(work_s)
    for event in events:
        listener.emit(event)


def _root(error: BaseException) -> str:
    """Last line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
