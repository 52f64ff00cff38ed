"""The training loop of everything that is trained: base, baselines, full fine-tunes, adapters.

One function of short labelled blocks, always in the same order (report, evaluate, save, done?, accumulate, step,
average), progress counted in images. It knows nothing of Ray, storage or MLflow: those come in as callbacks.

Example:
    >>> state = create_state(Generator(width=16), Discriminator(width=16), cfg)
    >>> result = train(state, data, cfg, seed=0, on_report=lambda state, metrics: print(metrics))
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch._functorch.config as functorch

from e2gan_cluster import busy
from e2gan_cluster.config import TrainConfig
from e2gan_cluster.errors import ConfigError, TrainingError
from e2gan_cluster.nn.losses import Perceptual
from e2gan_cluster.train.data import PairData, make_batch
from e2gan_cluster.train.state import TrainState, create_state
from e2gan_cluster.train.step import Reduce, out_of_memory_explained, train_step

__all__ = ["TrainResult", "TrainState", "Workers", "create_state", "train", "train_step"]

REPORT_STEPS = 25
"""Steps between reports."""


@dataclass(frozen=True)
class Workers:
    """This worker among the workers of one training."""

    rank: int = 0
    size: int = 1
    reduce: Reduce | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a training did.

    Attributes:
        images: Images seen in all, those before a resume included.
        seconds: Wall time of this call in training steps; callbacks not counted.
        losses: Means over the last report window.
        stopped_early: ``should_stop`` said so.
        collapsed: The collapse alarm went off at some time.
    """

    images: int
    seconds: float
    losses: Mapping[str, float]
    stopped_early: bool
    collapsed: bool


def train(
    state: TrainState,
    data: PairData,
    cfg: TrainConfig,
    *,
    seed: int,
    until: int | None = None,
    on_report: Callable[[TrainState, Mapping[str, float]], None] | None = None,
    on_eval: Callable[[TrainState], None] | None = None,
    on_checkpoint: Callable[[TrainState], None] | None = None,
    should_stop: Callable[[TrainState], bool] | None = None,
    perceptual: Perceptual | None = None,
    workers: Workers | None = None,
) -> TrainResult:
    """Trains until ``cfg.images`` images have been seen.

    Args:
        state: Where to start from; changed in place.
        data: All pairs; every worker has all of them.
        cfg: Training options.
        seed: Seed of the order of samples.
        until: Pause after this many images instead; the schedule stays that of ``cfg.images``.
        on_report: Called every `REPORT_STEPS` steps with mean losses, ``images_per_s``, ``learning_rate``,
            ``collapsed``.
        on_eval: Called before the first step, every ``cfg.eval_images`` images and at the end.
        on_checkpoint: Called every ``cfg.checkpoint_images`` images and at the end, after ``on_eval``.
        should_stop: Asked before every step; must agree among workers.
        perceptual: Perceptual distance, needed if ``cfg.loss.lpips_weight`` is not 0.
        workers: This worker among several; None = alone.

    Raises:
        TrainingError: A loss or gradient is NaN or infinite, or memory ran out; raised before the update.
        ConfigError: The batch does not divide among the workers.
    """
    workers = workers or Workers()
    _check(cfg, workers, perceptual)
    end = min(until or cfg.images, cfg.images)
    window = _Window()
    seconds, stopped = 0.0, False
    # A fresh start is evaluated, a resumed one was before it was saved.
    before = state.images_seen or -1
    state.generator.train()
    while True:
        done = state.images_seen >= end
        moved = state.images_seen != before

        # Report.
        if window.steps and (window.steps >= REPORT_STEPS or done):
            losses = window.flush(cfg, state)
            if on_report is not None:
                on_report(state, losses)

        # Evaluate, then save, so that a saved state never lacks its evaluation.
        if on_eval is not None and moved and (done or _due(before, state.images_seen, cfg.eval_images)):
            on_eval(state)
        save = moved and state.steps > 0 and (done or _due(before, state.images_seen, cfg.checkpoint_images))
        if on_checkpoint is not None and save:
            on_checkpoint(state)

        # Done?
        if not done and should_stop is not None:
            stopped = should_stop(state)
        if done or stopped:
            break

        # Accumulate, step, average.
        before, started = state.images_seen, time.perf_counter()
        batch = make_batch(
            data, seed=seed, images_seen=state.images_seen, batch_size=cfg.batch_size, flip=cfg.flip,
            augment=cfg.augment == "diffaug", rank=workers.rank, world_size=workers.size, device=state.device,
        )  # fmt: skip
        with out_of_memory_explained(state, cfg):
            values = train_step(state, batch, cfg, perceptual=perceptual, reduce=workers.reduce)
        elapsed_s = time.perf_counter() - started
        seconds += elapsed_s
        busy.add(elapsed_s)
        window.add(values, cfg.batch_size, elapsed_s)
    if window.steps:
        window.flush(cfg, state)
    return TrainResult(state.images_seen, seconds, window.last, stopped, state.collapsed)


class _Window:
    """Sums of losses since the last report."""

    def __init__(self) -> None:
        self.steps, self.images, self.elapsed_s = 0, 0, 0.0
        self.sums: dict[str, tuple[float, int]] = {}
        self.last: dict[str, float] = {}

    def add(self, values: Mapping[str, float], images: int, elapsed_s: float) -> None:
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)
        self.steps, self.images, self.elapsed_s = self.steps + 1, self.images + images, self.elapsed_s + elapsed_s

    def flush(self, cfg: TrainConfig, state: TrainState) -> dict[str, float]:
        means = {name: total / count for name, (total, count) in self.sums.items()}
        means["images_per_s"] = self.images / max(self.elapsed_s, 1e-9)
        means["learning_rate"] = float(state.opt_g.param_groups[0]["lr"])
        means["collapsed"] = float(state.collapsed)
        self.steps, self.images, self.elapsed_s, self.sums, self.last = 0, 0, 0.0, {}, means
        return means


def _due(before: int, now: int, interval: int) -> bool:
    return before // interval != now // interval


def _check(cfg: TrainConfig, workers: Workers, perceptual: Perceptual | None) -> None:
    share = workers.size * cfg.accumulate
    if cfg.batch_size % share:
        raise ConfigError(
            f"train.batch_size = {cfg.batch_size} does not divide among {workers.size} workers"
            f" with accumulate = {cfg.accumulate}.",
            fix=f"Use a multiple of {share}.",
        )
    if cfg.loss.lpips_weight and perceptual is None:
        raise TrainingError("loss.lpips_weight is set but no perceptual network was given.")
    if cfg.compile:
        # The fake's logits are differentiated twice (for each network): their buffers must survive the first time.
        functorch.donated_buffer = False
