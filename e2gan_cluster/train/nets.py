"""Networks as the config describes them."""

from e2gan_cluster.config import NetsConfig
from e2gan_cluster.nn.discriminator import Discriminator
from e2gan_cluster.nn.generator import Generator


def build_generator(nets: NetsConfig, text_dim: int) -> Generator:
    """An untrained generator.

    Args:
        nets: Sizes and variants.
        text_dim: Size of a prompt token.
    """
    return Generator(nets.width, text_dim, nets.heads, nets.upsample, nets.output, nets.modulate)


def build_discriminator(nets: NetsConfig, text_dim: int) -> Discriminator:
    """An untrained discriminator; ``text_dim`` 0 does not look at the prompt."""
    return Discriminator(nets.disc_width, text_dim, nets.disc_scales, nets.spectral_norm)
