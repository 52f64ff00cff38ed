"""What a base and its adapters are compared with, in the same loop and on the same pairs.

Example:
    net = train_baseline("resnet9", pairs, cfg, nets, seed=0)
    outputs_NHWC = run_generator(net, heldout.inputs_NHWC, tokens_TD)
"""

import copy
from typing import Literal

import torch
from torch import nn

from e2gan_cluster.config import NetsConfig, TrainConfig
from e2gan_cluster.errors import InputError
from e2gan_cluster.nn.baselines import ResNet9, UNet256
from e2gan_cluster.nn.losses import Perceptual
from e2gan_cluster.train.base_store import Base
from e2gan_cluster.train.data import PairData
from e2gan_cluster.train.loop import create_state, train
from e2gan_cluster.train.nets import build_discriminator, build_generator

BaselineKind = Literal["identity", "resnet9", "unet", "scratch", "finetune"]
BASELINES: tuple[BaselineKind, ...] = ("identity", "resnet9", "unet", "scratch", "finetune")


class Identity(nn.Module):
    """Returns the photo: what doing nothing scores."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x_BCHW: torch.Tensor, text_BTD: torch.Tensor | None = None) -> torch.Tensor:
        """Returns ``x_BCHW``."""
        del text_BTD
        return x_BCHW


def baseline_networks(
    kind: BaselineKind, nets: NetsConfig, data: PairData, base: Base | None = None
) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator before training.

    Args:
        kind: ``identity``; ``resnet9`` or ``unet``: pix2pix from scratch, blind to the prompt; ``scratch``: our
            generator untrained; ``finetune``: all weights of a base.
        nets: Widths; a fine-tune takes those of its base.
        data: Pairs, for their resolution and text size.
        base: The base of ``finetune``.

    Raises:
        InputError: ``finetune`` without a base.
    """
    text_dim = data.tokens_CTD.shape[2]
    if kind == "finetune":
        if base is None:
            raise InputError("a full fine-tune needs a trained base", "train one with `e2gan base`")
        return copy.deepcopy(base.generator).requires_grad_(True), copy.deepcopy(base.discriminator).requires_grad_(
            True
        )
    if kind == "scratch":
        return build_generator(nets, text_dim), build_discriminator(nets, text_dim)
    unconditional = build_discriminator(nets, 0)
    if kind == "identity":
        return Identity(), unconditional
    if kind == "resnet9":
        return ResNet9(nets.width), unconditional
    side = data.inputs_NHWC.shape[1]
    return UNet256(nets.width, levels=min(8, (side & -side).bit_length() - 1)), unconditional


def train_baseline(
    kind: BaselineKind,
    data: PairData,
    cfg: TrainConfig,
    nets: NetsConfig,
    *,
    seed: int,
    base: Base | None = None,
    perceptual: Perceptual | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Trains a baseline as adapters are trained.

    Args:
        kind: Which; see `baseline_networks`.
        data: Pairs of one concept.
        cfg: Training options.
        nets: Widths.
        seed: Seed of weights and order.
        base: The base of ``finetune``.
        perceptual: Perceptual distance.
        device: Where to train.

    Returns:
        The network with averaged weights, in evaluation mode.

    Raises:
        TrainingError: A loss or gradient is not finite.
    """
    torch.manual_seed(seed)
    generator, discriminator = baseline_networks(kind, nets, data, base)
    if kind == "identity":
        return generator.eval()
    state = create_state(generator.to(device), discriminator.to(device), cfg)
    train(state, data, cfg, seed=seed, perceptual=perceptual)
    with state.averaged() as averaged:
        return copy.deepcopy(averaged).eval()
