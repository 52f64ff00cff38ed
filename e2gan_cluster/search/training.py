"""Training one adapter on the shared, frozen base: used by trials, probes and benchmarks.

The base and the data come from the warm worker and are not changed; the same arguments give the same weights.

Example:
    >>> training = AdapterTraining(warm, data, size=100, ranks={"ds.conv.1": 2}, cfg=cfg, seed=0)
    >>> for images in training.until(1.0): print(images)
    >>> training.evaluate(1.0)
"""

import copy
import math
import time
from collections.abc import Iterator, Mapping

import torch
from peft import PeftModel
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from e2gan_cluster.config import TrainConfig
from e2gan_cluster.errors import TrainingError
from e2gan_cluster.nn.lora import add_lora, cap_ranks, lora_parameters, save_adapter, start_from
from e2gan_cluster.search.records import Point
from e2gan_cluster.search.worker import ConceptData, WarmWorker
from e2gan_cluster.train.loop import create_state, train

SLICE_S = 5.0
"""Longest silence of a training, seconds: progress is reported, and a stop is heard, this often."""

_NOT_LOSSES = ("images_per_s", "collapsed", "learning_rate")


class AdapterTraining:
    """One adapter in training, in slices.

    Args:
        warm: Base, nets, metric.
        data: The concept.
        size: Data rung.
        ranks: Layer -> wanted LoRA rank; lowered where a layer cannot have it.
        cfg: Training options.
        seed: Of the LoRA start and the order of samples.
        donor: LoRA tensors to start from.

    Attributes:
        ranks: Layer -> rank.
        curve: Evaluations so far.
    """

    def __init__(
        self,
        warm: WarmWorker,
        data: ConceptData,
        *,
        size: int,
        ranks: Mapping[str, int],
        cfg: TrainConfig,
        seed: int,
        donor: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.warm, self.data, self.cfg, self.seed = warm, data, cfg, seed
        self.pairs = data.pairs(size)
        generator = warm.generator()
        self.ranks = cap_ranks(generator, ranks)
        self.model: PeftModel = add_lora(generator, self.ranks, seed=seed)
        if donor is not None:
            start_from(self.model, donor)
        self.model.to(warm.device)
        self.state = create_state(self.model, _discriminator(warm) if cfg.loss.gan_weight else None, cfg)
        self.curve: list[Point] = []
        self._losses: Mapping[str, float] = {}

    @property
    def trained_parameters(self) -> int:
        """LoRA weights."""
        return sum(p.numel() for _, p in lora_parameters(self.model))

    def until(self, fraction: float) -> Iterator[int]:
        """Train up to a share of the training; yields the images seen every `SLICE_S`.

        Raises:
            TrainingError: A loss or gradient is not finite.
        """
        end = math.ceil(fraction * self.cfg.images)
        perceptual = self.warm.lpips if self.cfg.loss.lpips_weight else None
        while self.state.images_seen < end:
            deadline = time.monotonic() + SLICE_S
            result = train(
                self.state,
                self.pairs,
                self.cfg,
                seed=self.seed,
                until=end,
                should_stop=lambda _, deadline=deadline: time.monotonic() > deadline,
                perceptual=perceptual,
            )
            self._losses = result.losses
            yield result.images

    def evaluate(self, fraction: float) -> float:
        """Measure the averaged weights on held-out photos and note the point.

        Raises:
            TrainingError: The metric is not finite.
        """
        with self.state.averaged() as generator:
            metric = self.warm.measure(generator, self.data)
        losses = {k: v for k, v in self._losses.items() if k not in _NOT_LOSSES and math.isfinite(v)}
        self.curve.append(Point(fraction, self.state.images_seen, metric, losses))
        return metric

    def snapshot(self) -> bytes:
        """All that `restore` needs to go on bit-equal."""
        return save_tensors(self.state.state_dict())

    def restore(self, snapshot: bytes) -> None:
        """Go on from where a training with the same arguments was.

        Raises:
            IntegrityError: The snapshot is not of this training.
        """
        self.state.load_state_dict(load_tensors(snapshot))

    def files(self) -> dict[str, bytes]:
        """The averaged adapter as PEFT files."""
        with self.state.averaged():
            return save_adapter(self.model, self.warm.setting.base_id)


def _discriminator(warm: WarmWorker) -> nn.Module | None:
    """The base's discriminator, trained as far as ``search.discriminator`` says.

    Raises:
        TrainingError: The base was stored without one.
    """
    kind = warm.config.search.discriminator
    if kind == "none":
        return None
    if warm.base.discriminator is None:
        raise TrainingError(f"base {warm.setting.base_id} has no discriminator", "set search.discriminator to none")
    discriminator = copy.deepcopy(warm.base.discriminator).requires_grad_(kind == "all")
    if kind == "last":
        for name, module in discriminator.named_modules():
            if name.endswith((".logits", ".text")):
                module.requires_grad_(True)
    return discriminator.train()
