"""Trains the bundled teacher from a folder of photos: cache of reference edits, loop, export.

Command: ``python jobs/train_teacher.py --photos DIR --out DIR``; a killed run continues with the same command.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from e2gan_cluster.teacher.bundled import build_scheduler, build_unet
from e2gan_cluster.teacher.training.bundled_loss import BundledLoss, LossConfig
from e2gan_cluster.teacher.training.loop import LoopConfig, LoopState, Trainer, train
from e2gan_cluster.teacher.training.triples import CROPS, TripleFeed, TripleSampler, build_cache, load_wordings
from e2gan_cluster.text.encoder import PromptEncoder

log = logging.getLogger(__name__)
CHANNELS = (64, 96, 160)


def train_bundled(
    photos: Path,
    out: Path,
    catalogue: Path,
    loop: LoopConfig,
    loss: LossConfig | None = None,
    cache: Path | None = None,
    channels: tuple[int, ...] = CHANNELS,
    crops: int = CROPS,
    workers: int = 0,
    device: str = "cpu",
    bf16: bool = True,
) -> LoopState:
    """Trains and exports; the same call continues a killed run.

    Args:
        photos: Folder of training photos.
        out: Checkpoint, `log.jsonl` and `unet/` (fp16 safetensors, averaged weights).
        catalogue: Concepts with wordings; every name has a reference edit.
        loop: Length and pace.
        loss: Weights of the loss terms; None = those the bundled weights were trained with.
        cache: Folder of the slow reference edits; None puts it into `out`.
        channels: Width of the network's levels.
        crops: Crops of each photo in the cache.
        workers: Processes that make edits; 0 = none beside this one.
        device: cpu or cuda.
        bf16: Compute the network in bf16; the weights stay float32.

    Returns:
        The final state.
    """
    loss = loss or LossConfig()
    cache = cache or out / "cache"
    build_cache(photos, cache, crops, workers=max(1, workers))
    sampler = TripleSampler(cache, load_wordings(catalogue), loop.seed)
    torch.manual_seed(loop.seed)
    unet = build_unet(channels)
    torch.nn.Module.to(unet, device)
    trainer = Trainer(unet, loop)
    log.info(
        "%d concepts, %d compositions trained, %d crops, %.2f M parameters",
        len(sampler.prompts),
        len(sampler.compositions),
        len(sampler.photos),
        sum(p.numel() for p in unet.parameters()) / 1e6,
    )
    loss_of = BundledLoss(
        unet,
        build_scheduler().alphas_cumprod,
        TripleFeed(sampler, loop.batch_size, workers),
        PromptEncoder("minilm"),
        loss,
        perceptual=_perceptual(device) if loss.perceptual_weight > 0 else None,
        device=device,
        bf16=bf16,
    )
    unet.train()
    torch.set_flush_denormal(True)
    try:
        return train(trainer, loss_of, out, on_checkpoint=lambda t: export_weights(t, out / "unet", channels))
    finally:
        # The mode belongs to the whole process: other training in it would round differently.
        torch.set_flush_denormal(False)


def export_weights(trainer: Trainer, folder: Path, channels: tuple[int, ...]) -> None:
    """Saves the averaged weights as `PromptPooledUNet.from_pretrained` reads them, in fp16."""
    unet = build_unet(channels)
    unet.load_state_dict({name: value.detach().cpu() for name, value in trainer.ema.items()})
    unet.half().save_pretrained(folder, safe_serialization=True)


def _perceptual(device: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    from e2gan_cluster.evaluate.lpips import Lpips

    return Lpips().to(device)
