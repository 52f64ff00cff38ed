"""Networks and pairs small enough for a step in milliseconds."""

import torch

from e2gan_cluster.config import LossConfig, TrainConfig
from e2gan_cluster.nn.discriminator import Discriminator
from e2gan_cluster.nn.generator import Generator
from e2gan_cluster.train.data import PairData
from e2gan_cluster.train.state import TrainState, create_state

TEXT_DIM = 8


def tiny_data(num_pairs: int = 12, concepts: int = 2, side: int = 32, seed: int = 0) -> PairData:
    """Photos of two blurry colours; edits: inverted (concept 0), swapped channels (1), ..."""
    rng = torch.Generator().manual_seed(seed)
    small = torch.rand(num_pairs, 3, 4, 4, generator=rng)
    photos = torch.nn.functional.interpolate(small, size=side, mode="bilinear")
    photos_NHWC = (photos * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    concept = torch.arange(num_pairs) % concepts
    edits = torch.where((concept == 0)[:, None, None, None], 255 - photos_NHWC, photos_NHWC.flip(3))
    tokens = torch.randn(concepts, 3, TEXT_DIM, generator=rng)
    pooled = torch.nn.functional.normalize(tokens.mean(1), dim=-1)
    return PairData(
        photos_NHWC, edits, concept, tokens, pooled, ("invert", "swap", *map(str, range(concepts)))[:concepts]
    )


def tiny_config(**options) -> TrainConfig:
    loss = options.pop("loss", LossConfig(l1_weight=10))
    return TrainConfig(
        **{"images": 48, "batch_size": 4, "loss": loss, "amp": "float32", "ema_interval": 2, "ema_images": 20} | options
    )


def tiny_state(cfg: TrainConfig, seed: int = 0, **options) -> TrainState:
    torch.manual_seed(seed)
    generator = Generator(width=4, text_dim=TEXT_DIM)
    discriminator = Discriminator(width=4, text_dim=TEXT_DIM, **options)
    return create_state(generator, discriminator, cfg)


def same_weights(a: TrainState, b: TrainState) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
