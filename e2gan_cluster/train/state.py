"""Everything that one training changes: networks, optimizers, moving average, counters.

What trains is what has ``requires_grad``: the base trains all of a `Generator`, an adapter only the LoRA weights of a
PEFT model, a baseline a network without text. A frozen part costs no gradients, and is not in the state's dict.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim import Adam

from e2gan_cluster.config import TrainConfig
from e2gan_cluster.errors import IntegrityError, TrainingError

RAMP_UP = 0.05
"""The average's half-life is at most this share of the images seen (StyleGAN2-ADA's EMA ramp-up)."""


class TrainState:
    """State of one training; see `create_state`.

    Attributes:
        generator: Network that edits: ``forward(photos, tokens)``.
        discriminator: Judge, or None for training without adversarial loss.
        images_seen: Images seen over all workers; the unit of progress.
        steps: Optimizer steps.
        collapse_run: Steps in a row with a discriminator loss near 0.
        collapsed: The collapse alarm has gone off.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module | None, cfg: TrainConfig) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.images_seen = 0
        self.steps = 0
        self.collapse_run = 0
        self.collapsed = False
        if cfg.channels_last:
            _channels_last(generator)
            if discriminator is not None:
                _channels_last(discriminator)
        self.run_generator = torch.compile(generator) if cfg.compile else generator
        self.run_discriminator = torch.compile(discriminator) if cfg.compile and discriminator else discriminator
        self.g_params = _trainable(generator)
        self.d_params = _trainable(discriminator) if discriminator is not None else {}
        if not self.g_params:
            raise TrainingError("No parameter of the generator is trainable.", fix="Name at least one part to train.")
        self.opt_g = _adam(self.g_params, cfg.lr, cfg)
        self.opt_d = _adam(self.d_params, cfg.lr_disc, cfg) if self.d_params else None
        self.ema = [p.detach().clone() for p in self.g_params.values()] if cfg.ema_images else None

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return next(iter(self.g_params.values())).device

    @torch.no_grad()
    def update_ema(self, images: int, half_life_images: int) -> None:
        """Moves the average by ``images`` images, with ramp-up."""
        if self.ema is None:
            return
        half_life = max(min(half_life_images, RAMP_UP * self.images_seen), 1e-8)
        weight = 1 - 0.5 ** (images / half_life)
        params: list[torch.Tensor] = list(self.g_params.values())
        # One call for all tensors: a Python loop over many small ones is slow.
        torch._foreach_lerp_(self.ema, params, weight)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The generator with its averaged weights inside the ``with`` block, in evaluation mode."""
        params = list(self.g_params.values())
        was_training = self.generator.training
        with torch.no_grad():
            backup = [p.detach().clone() for p in params]
            if self.ema is not None:
                _copy_all(params, self.ema)
        self.generator.eval()
        try:
            yield self.generator
        finally:
            self.generator.train(was_training)
            with torch.no_grad():
                _copy_all(params, backup)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that is needed to go on bit-equal, as a flat dict of tensors (safetensors)."""
        counters = [self.images_seen, self.steps, self.collapse_run, int(self.collapsed)]
        tensors = {"counters": torch.tensor(counters, dtype=torch.int64)}
        tensors |= {f"g/{name}": p.detach() for name, p in self.g_params.items()}
        if self.ema is not None:
            tensors |= {f"ema/{name}": e for name, e in zip(self.g_params, self.ema, strict=True)}
        tensors |= _optimizer_tensors("opt_g", self.opt_g, self.g_params)
        if self.opt_d is not None and self.discriminator is not None:
            tensors |= {f"d/{name}": t for name, t in self.discriminator.state_dict().items()}
            tensors |= _optimizer_tensors("opt_d", self.opt_d, self.d_params)
        return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Goes back to a saved state.

        Raises:
            IntegrityError: The tensors are not of this training.
        """
        own = self.state_dict()
        # Before the first step an optimizer has no state yet: its tensors are not in `own`.
        missing = own.keys() - tensors.keys()
        wrong = [
            n for n in own.keys() & tensors.keys() if not n.startswith("opt_") and own[n].shape != tensors[n].shape
        ]
        if missing or wrong:
            raise IntegrityError(
                f"The saved state does not fit this training: {', '.join(sorted([*missing, *wrong])[:5])}.",
                fix="Delete the work folder of this run to start again, or restore the settings it was made with.",
            )
        for name, p in self.g_params.items():
            p.copy_(tensors[f"g/{name}"])
        if self.ema is not None:
            for name, e in zip(self.g_params, self.ema, strict=True):
                e.copy_(tensors[f"ema/{name}"])
        _load_optimizer("opt_g", self.opt_g, self.g_params, tensors)
        if self.opt_d is not None and self.discriminator is not None:
            names = self.discriminator.state_dict().keys()
            self.discriminator.load_state_dict({n: tensors[f"d/{n}"] for n in names})
            _load_optimizer("opt_d", self.opt_d, self.d_params, tensors)
        self.images_seen, self.steps, self.collapse_run, collapsed = tensors["counters"].tolist()
        self.collapsed = bool(collapsed)


def create_state(
    generator: nn.Module,
    discriminator: nn.Module | None,
    cfg: TrainConfig,
    trainable: Sequence[str] | None = None,
) -> TrainState:
    """Prepares a training.

    Args:
        generator: Network to train; a PEFT model trains its LoRA weights only.
        discriminator: Judge; None, or ``cfg.loss.gan_weight`` 0, trains without one.
        cfg: Training options.
        trainable: Parts of the generator to train, by name (``us`` or ``transformer.mlp``); the rest is frozen. None
            leaves ``requires_grad`` as it is.

    Raises:
        TrainingError: A name fits no part, or nothing is left to train.
    """
    if trainable is not None:
        names = [name for name, _ in generator.named_parameters()]
        unknown = [t for t in trainable if not any(_inside(name, t) for name in names)]
        if unknown:
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise TrainingError(f"No part of the generator is named {', '.join(unknown)}.", fix=f"Its parts: {parts}.")
        for name, p in generator.named_parameters():
            p.requires_grad_(any(_inside(name, t) for t in trainable))
    return TrainState(generator, discriminator if cfg.loss.gan_weight else None, cfg)


def _copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _inside(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _adam(params: Mapping[str, nn.Parameter], lr: float, cfg: TrainConfig) -> Adam:
    fused = all(p.device.type in ("cpu", "cuda") for p in params.values())
    return Adam(list(params.values()), lr=lr, betas=(cfg.beta1, cfg.beta2), fused=fused)


def _channels_last(module: nn.Module) -> None:
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _optimizer_tensors(prefix: str, opt: Adam, params: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}/{name}/{key}": value for name, p in params.items() for key, value in opt.state.get(p, {}).items()
    }


def _load_optimizer(
    prefix: str, opt: Adam, params: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor]
) -> None:
    for name, p in params.items():
        keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"{prefix}/{name}/{k}" in tensors]
        # Adam keeps its step counter on the CPU unless it is fused on a GPU.
        opt.state[p] = {k: _like(tensors[f"{prefix}/{name}/{k}"], p, k) for k in keys}
        if not keys:
            del opt.state[p]


def _like(saved: torch.Tensor, p: nn.Parameter, key: str) -> torch.Tensor:
    if key == "step":
        return saved.clone().to(p.device if p.is_cuda else "cpu")
    return torch.empty_like(p).copy_(saved)
