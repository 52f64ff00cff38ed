"""One optimizer step of a conditional GAN, in pure torch.

Both losses are taken at the same point, with one forward pass of the generator: the discriminator's gradient from
(real, fake), the generator's from L1, the perceptual loss and the adversarial loss on the same fake. Nothing is updated
before every loss and gradient is known to be finite.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch

from e2gan_cluster.config import TrainConfig
from e2gan_cluster.errors import TrainingError
from e2gan_cluster.nn.augment import augment_pair
from e2gan_cluster.nn.losses import Perceptual, discriminator_loss, generator_loss, l1_loss, r1_penalty
from e2gan_cluster.train.data import Batch
from e2gan_cluster.train.state import TrainState

COLLAPSE_LOSS = 0.02
"""A discriminator loss below this counts as near 0."""

_STRIDE = 4
"""Of the first convolution of LPIPS' AlexNet."""

Reduce = Callable[[list[torch.Tensor]], None]
"""Averages gradients over workers, in place."""


def train_step(
    state: TrainState,
    batch: Batch,
    cfg: TrainConfig,
    *,
    perceptual: Perceptual | None = None,
    reduce: Reduce | None = None,
) -> dict[str, float]:
    """Trains on one batch.

    Args:
        state: Changed in place.
        batch: This worker's part of the step.
        cfg: Training options.
        perceptual: Perceptual distance; used if ``cfg.loss.lpips_weight`` is not 0.
        reduce: Averages gradients over workers; None for a single one.

    Returns:
        Losses and gradient norms by name (``l1``, ``lpips``, ``g_gan``, ``d``, ``r1``, ``grad_g``, ``grad_d``).

    Raises:
        TrainingError: A loss or gradient is NaN or infinite; nothing has been updated.
    """
    _set_rates(state, cfg)
    totals: dict[str, torch.Tensor] = {}
    for part in batch.split(cfg.accumulate):
        for name, value in _accumulate(state, part, cfg, perceptual).items():
            totals[name] = totals.get(name, torch.zeros_like(value)) + value / cfg.accumulate
    g_grads = [p.grad for p in state.g_params.values() if p.grad is not None]
    d_grads = [p.grad for p in state.d_params.values() if p.grad is not None]
    if reduce is not None:
        reduce(g_grads + d_grads)
    totals["grad_g"] = torch.nn.utils.get_total_norm(g_grads)
    if d_grads:
        totals["grad_d"] = torch.nn.utils.get_total_norm(d_grads)
    values = dict(zip(totals, torch.stack(list(totals.values())).tolist(), strict=True))
    _check_finite(values, state, batch)
    state.opt_g.step()
    if state.opt_d is not None and d_grads:
        state.opt_d.step()
        state.opt_d.zero_grad(set_to_none=True)
    state.opt_g.zero_grad(set_to_none=True)
    _count(state, batch.images, values, cfg)
    return values


@contextmanager
def out_of_memory_explained(state: TrainState, cfg: TrainConfig) -> Iterator[None]:
    """Turns a failed allocation, on a GPU or in main memory, into advice.

    Raises:
        TrainingError: Memory ran out; the weights before this step are kept.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not memory:
            raise
        raise TrainingError(
            f"Out of memory at step {state.steps} with {cfg.batch_size // cfg.accumulate} images at once.",
            fix=f"Set accumulate to {2 * cfg.accumulate} (same result, half the memory), or lower batch_size.",
        ) from error


def learning_rate_factor(images_seen: int, cfg: TrainConfig) -> float:
    """1 until ``decay_from`` of the training, then linear to 0 at its end (pix2pix)."""
    start = cfg.decay_from * cfg.images
    if images_seen < start:
        return 1.0
    return max(1.0 - (images_seen - start) / max(cfg.images - start, 1.0), 0.0)


def _accumulate(
    state: TrainState, batch: Batch, cfg: TrainConfig, perceptual: Perceptual | None
) -> dict[str, torch.Tensor]:
    """Adds the gradients of one part of the batch; returns its losses, detached."""
    loss, values = cfg.loss, {}
    with _autocast(state, cfg):
        fake = state.run_generator(_layout(batch.source_BCHW, cfg), batch.text_BTD)
    fake = fake.float()
    total = torch.zeros((), device=fake.device)
    if loss.l1_weight:
        l1 = l1_loss(fake, batch.target_BCHW)
        total, values["l1"] = total + loss.l1_weight * l1, l1
    if loss.lpips_weight and perceptual is not None:
        with _autocast(state, cfg):
            distance = perceptual(*_window(state.steps, fake, batch.target_BCHW))
        total, values["lpips"] = total + loss.lpips_weight * distance.float().mean(), distance.float().mean()
    roots, gradients = [total / cfg.accumulate], [torch.ones_like(total)]
    if state.discriminator is not None:
        # The judge works on a copy cut off from the generator: its backward passes never run through the generator.
        seen = fake.detach().requires_grad_()
        adversarial, gradient = _judge(state, batch, seen, cfg)
        values |= adversarial
        roots.append(fake)
        gradients.append(gradient / cfg.accumulate)
    live = [(r, g) for r, g in zip(roots, gradients, strict=True) if r.requires_grad]
    torch.autograd.backward([r for r, _ in live], [g for _, g in live])
    return {name: value.detach() for name, value in values.items()}


def _window(step: int, *images_BCHW: torch.Tensor) -> list[torch.Tensor]:
    """The same part of all images, a few pixels smaller, from another corner at each step.

    A perceptual network's first layer looks at every 4th position only: at a fixed offset it cannot see patterns of
    that period, and a generator trained on it alone covers its images with them (see E-LPIPS, Kettunen et al. 2019).
    """
    y, x = step % _STRIDE, step // _STRIDE % _STRIDE
    return [i_BCHW[..., y : y - _STRIDE + 1 or None, x : x - _STRIDE + 1 or None] for i_BCHW in images_BCHW]


def _judge(
    state: TrainState, batch: Batch, seen: torch.Tensor, cfg: TrainConfig
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Adds the discriminator's gradients; returns losses and the adversarial gradient at the fake."""
    loss = cfg.loss
    update = bool(state.d_params) and state.steps % cfg.disc_interval == 0
    with _autocast(state, cfg):
        fake_logits = _logits(state, batch, seen, cfg)
    g_gan = generator_loss(loss.gan, fake_logits)
    (gradient,) = torch.autograd.grad(loss.gan_weight * g_gan, seen, retain_graph=update)
    values = {"g_gan": g_gan}
    if update:
        with _autocast(state, cfg):
            real_logits = _logits(state, batch, batch.target_BCHW, cfg)
        d = discriminator_loss(loss.gan, real_logits, fake_logits)
        values["d"] = d
        if loss.r1_weight and state.steps % loss.r1_interval == 0:
            values["r1"] = _r1(state, batch)
            d = d + loss.r1_weight * loss.r1_interval * values["r1"]
        torch.autograd.backward(d / cfg.accumulate, inputs=list(state.d_params.values()))
    return values, gradient


def _logits(state: TrainState, batch: Batch, image_BCHW: torch.Tensor, cfg: TrainConfig) -> list[torch.Tensor]:
    assert state.run_discriminator is not None
    source_BCHW = batch.source_BCHW
    if cfg.augment == "diffaug":
        assert batch.uniform_BK is not None
        pair = augment_pair(torch.cat((source_BCHW, image_BCHW), dim=1), batch.uniform_BK)
        source_BCHW, image_BCHW = pair[:, :3], pair[:, 3:]
    return state.run_discriminator(_layout(source_BCHW, cfg), _layout(image_BCHW, cfg), batch.pooled_BD)


def _r1(state: TrainState, batch: Batch) -> torch.Tensor:
    assert state.discriminator is not None
    image = batch.target_BCHW.detach().requires_grad_()
    return r1_penalty(state.discriminator(batch.source_BCHW, image, batch.pooled_BD), image)


def _set_rates(state: TrainState, cfg: TrainConfig) -> None:
    factor = learning_rate_factor(state.images_seen, cfg)
    for optimizer, rate in ((state.opt_g, cfg.lr), (state.opt_d, cfg.lr_disc)):
        if optimizer is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor


def _count(state: TrainState, images: int, values: dict[str, float], cfg: TrainConfig) -> None:
    state.images_seen += images
    state.steps += 1
    if state.steps % cfg.ema_interval == 0:
        state.update_ema(images * cfg.ema_interval, cfg.ema_images)
    if "d" in values:
        state.collapse_run = state.collapse_run + 1 if values["d"] < COLLAPSE_LOSS else 0
        state.collapsed = state.collapsed or state.collapse_run >= cfg.collapse_steps


def _check_finite(values: dict[str, float], state: TrainState, batch: Batch) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if not bad:
        return
    state.opt_g.zero_grad(set_to_none=True)
    if state.opt_d is not None:
        state.opt_d.zero_grad(set_to_none=True)
    raise TrainingError(
        f"{bad[0]} is {values[bad[0]]} at step {state.steps} ({state.images_seen} images),"
        f" concept {_culprits(state, batch)}.",
        fix="Lower the learning rate, or look at the pairs of that concept; the weights before this step are kept.",
    )


@torch.no_grad()
def _culprits(state: TrainState, batch: Batch) -> str:
    """Concepts whose data or output is not finite; all of the batch if that does not tell."""
    output = state.generator(batch.source_BCHW, batch.text_BTD)
    finite_B = torch.stack([t.isfinite().flatten(1).all(1) for t in (batch.target_BCHW, output)]).all(0).tolist()
    names = dict.fromkeys(name for name, ok in zip(batch.concepts, finite_B, strict=True) if not ok)
    return ", ".join(list(names or dict.fromkeys(batch.concepts))[:5])


def _autocast(state: TrainState, cfg: TrainConfig) -> AbstractContextManager[object]:
    if cfg.amp == "float32" or (cfg.amp == "auto" and not _fast_bfloat16(state.device.type)):
        return nullcontext()
    return torch.autocast(state.device.type, dtype=torch.bfloat16)


@cache
def _fast_bfloat16(device_type: str) -> bool:
    """Whether the hardware multiplies bfloat16 itself; elsewhere it is emulated and slower than float32."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return device_type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _layout(x_BCHW: torch.Tensor, cfg: TrainConfig) -> torch.Tensor:
    return x_BCHW.contiguous(memory_format=torch.channels_last) if cfg.channels_last else x_BCHW
