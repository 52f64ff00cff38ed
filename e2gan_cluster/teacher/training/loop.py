"""The training loop of teachers: one function, pure torch, killed and resumed by the same command.

Progress is counted in images. Randomness is reseeded from (seed, images seen) before every step, so that a resumed
run continues as an unbroken one. A checkpoint is one safetensors file, renamed into place when complete.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from e2gan_cluster.errors import TrainingError

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class LoopConfig:
    """Length and pace of a run.

    Attributes:
        images: Images to train on; the learning rate falls to 0 at the last one.
        minutes: Training time after which the run ends whatever it has seen; 0 = no limit.
        batch_size: Images a step.
        learning_rate: Peak, after `warmup_images`.
        warmup_images: Images over which the rate rises from 0.
        weight_decay: Of AdamW, on matrices and kernels.
        max_grad_norm: Gradients are clipped to this norm.
        ema_every: Steps between updates of the averaged weights.
        ema_decay: Share of the old average kept at an update.
        checkpoint_every_s: Seconds between checkpoints.
        log_every_s: Seconds between progress lines.
        seed: Of data order and noise.
    """

    images: int
    minutes: float = 0.0
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_images: int = 3000
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_every: int = 10
    ema_decay: float = 0.97
    checkpoint_every_s: float = 180.0
    log_every_s: float = 30.0
    seed: int = 0


@dataclass
class LoopState:
    """What a checkpoint holds besides tensors: images seen and seconds spent training."""

    images_seen: int = 0
    elapsed_s: float = 0.0
    ema_updates: int = 0


class Trainer:
    """Weights, their running average and the optimizer, with save and load.

    Args:
        model: Its parameters that require gradients are trained.
        config: The run's settings.
    """

    def __init__(self, model: torch.nn.Module, config: LoopConfig) -> None:
        self.model, self.config, self.state = model, config, LoopState()
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in self.params.items()}
        decay = [p for p in self.params.values() if p.ndim > 1]
        plain = [p for p in self.params.values() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            fused=True,
        )

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end, by images or by time, whichever is further."""
        by_time = self.state.elapsed_s / (60 * self.config.minutes) if self.config.minutes else 0.0
        return min(1.0, max(self.state.images_seen / self.config.images, by_time))

    def update_ema(self) -> None:
        """Moves the average towards the weights; early on it follows faster."""
        self.state.ema_updates += 1
        keep = min(self.config.ema_decay, self.state.ema_updates / (self.state.ema_updates + 9))
        for name, param in self.params.items():
            self.ema[name].lerp_(param.detach(), 1 - keep)

    def save(self, folder: Path) -> None:
        """Writes the checkpoint under a temporary name and renames it."""
        tensors = {f"model/{k}": p.detach() for k, p in self.params.items()}
        tensors |= {f"ema/{k}": v for k, v in self.ema.items()}
        for name, param in self.params.items():
            for key, value in self.optimizer.state.get(param, {}).items():
                tensors[f"optimizer/{key}/{name}"] = value.detach()
        partial = folder / f"{CHECKPOINT}.partial"
        tensors = {k: v.cpu().contiguous().clone() for k, v in tensors.items()}
        save_file(tensors, partial, metadata={"state": json.dumps(vars(self.state))})
        partial.replace(folder / CHECKPOINT)

    def load(self, folder: Path) -> bool:
        """Restores the checkpoint of `folder`; returns False where there is none.

        Raises:
            TrainingError: The checkpoint belongs to another network.
        """
        path = folder / CHECKPOINT
        if not path.exists():
            return False
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            if {k.removeprefix("model/") for k in keys if k.startswith("model/")} != set(self.params):
                raise TrainingError(f"{path} holds another network's weights.", fix="Train into an empty --out folder.")
            with torch.no_grad():
                for name, param in self.params.items():
                    param.copy_(file.get_tensor(f"model/{name}"))
                    self.ema[name].copy_(file.get_tensor(f"ema/{name}"))
                    self.optimizer.state[param] = {
                        key: file.get_tensor(f"optimizer/{key}/{name}").to("cpu" if key == "step" else param.device)
                        for key in ("step", "exp_avg", "exp_avg_sq")
                        if f"optimizer/{key}/{name}" in keys
                    }
            self.state = LoopState(**json.loads(file.metadata()["state"]))
        return True

    def load_ema_into_model(self) -> None:
        """Replaces the weights by their average, for saving or judging."""
        with torch.no_grad():
            for name, param in self.params.items():
                param.copy_(self.ema[name])


def learning_rate_at(progress: float, images_seen: int, config: LoopConfig) -> float:
    """Linear warm-up, then a half cosine to 0 at the end."""
    warmup = min(1.0, (images_seen + config.batch_size) / max(1, config.warmup_images))
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    trainer: Trainer,
    loss_of: Callable[[int, float], torch.Tensor],
    out: Path,
    on_checkpoint: Callable[[Trainer], None] = lambda _: None,
) -> LoopState:
    """Trains until the config's images or minutes are used up; continues from a checkpoint in `out`.

    Args:
        trainer: Model, optimizer and state.
        loss_of: From (images seen, progress in [0, 1]) to the loss of the next batch.
        out: Folder of the checkpoint and `log.jsonl`.
        on_checkpoint: Called after each checkpoint, such as to export weights.

    Returns:
        The final state.

    Raises:
        TrainingError: The loss is not finite; the optimizer has not stepped on it.
    """
    out.mkdir(parents=True, exist_ok=True)
    config, state = trainer.config, trainer.state
    if trainer.load(out):
        state = trainer.state
        log.info("continuing after %d images, %.1f min", state.images_seen, state.elapsed_s / 60)
    saved_at = logged_at = time.monotonic()
    losses: list[float] = []
    while trainer.progress < 1:
        started = time.monotonic()
        torch.manual_seed(config.seed * 1_000_003 + state.images_seen)
        loss = _step(trainer, loss_of)
        losses.append(loss)
        state.images_seen += config.batch_size
        if (state.images_seen // config.batch_size) % config.ema_every == 0:
            trainer.update_ema()
        now = time.monotonic()
        state.elapsed_s += now - started
        if now - logged_at >= config.log_every_s or trainer.progress >= 1:
            _report(trainer, losses, now - logged_at, out)
            losses, logged_at = [], now
        if now - saved_at >= config.checkpoint_every_s or trainer.progress >= 1:
            trainer.save(out)
            on_checkpoint(trainer)
            saved_at = time.monotonic()
    return state


def _step(trainer: Trainer, loss_of: Callable[[int, float], torch.Tensor]) -> float:
    config, state = trainer.config, trainer.state
    for group in trainer.optimizer.param_groups:
        group["lr"] = learning_rate_at(trainer.progress, state.images_seen, config)
    trainer.optimizer.zero_grad(set_to_none=True)
    loss = loss_of(state.images_seen, trainer.progress)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"The loss is {value} after {state.images_seen} images.",
            fix="Lower --learning-rate, or look for broken images among the triples.",
        )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(_with_gradients(trainer.params.values()), config.max_grad_norm)
    trainer.optimizer.step()
    return value


def _with_gradients(params: Iterable[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    return [p for p in params if p.grad is not None]


def _report(trainer: Trainer, losses: list[float], interval_s: float, out: Path) -> None:
    state, progress = trainer.state, trainer.progress
    line = {
        "images": state.images_seen,
        "progress": round(progress, 4),
        "loss": round(sum(losses) / max(1, len(losses)), 5),
        "lr": trainer.optimizer.param_groups[0]["lr"],
        "images_per_s": round(len(losses) * trainer.config.batch_size / max(interval_s, 1e-6), 2),
        "elapsed_min": round(state.elapsed_s / 60, 2),
        "eta_min": round(state.elapsed_s / 60 * (1 - progress) / max(progress, 1e-6), 1),
    }
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    log.info(" ".join(f"{key}={value}" for key, value in line.items()))
