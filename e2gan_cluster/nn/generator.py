"""E2GAN's generator: one small network that edits a photo as a prompt says.

Order of blocks as in E2GAN (Gong et al., ICML 2024) 3.1: Downsample, two ResNet blocks, DS, Transformer block, US,
ResNet block, Upsample. Adapters may change every part; `PARTS` names them.

Example:
    >>> import torch
    >>> generator = Generator(width=16)
    >>> generator(torch.zeros(1, 3, 64, 64), torch.randn(1, 24, 384)).shape
    torch.Size([1, 3, 64, 64])
"""

from typing import Literal

import torch
from torch import nn

from e2gan_cluster.nn.blocks import ConvBlock, ResBlock, TransformerBlock, UpBlock, UpsampleKind, padded_conv, pooled_of

OutputKind = Literal["direct", "residual", "mapped"]

PARTS = ("downsample", "res1", "res2", "ds", "transformer", "us", "res3", "upsample")
"""Names of the generator's direct submodules, in order."""


class Upsample(nn.Module):
    """Two up-sampling blocks and the output head.

    Args:
        width: Channels of the last features; the input has four times as many.
        kind: Up-sampling.
        output: ``direct``: tanh of the head; ``residual``: photo + head; ``mapped``: photo times a colour matrix per
            pixel (from the features, plus one for the whole image from the prompt) + head.
        text_dim: Size of the pooled prompt; 0 = no modulation.
    """

    def __init__(self, width: int, kind: UpsampleKind, output: OutputKind, text_dim: int) -> None:
        super().__init__()
        self.output = output
        self.up1 = UpBlock(4 * width, 2 * width, kind, text_dim)
        self.up2 = UpBlock(2 * width, width, kind, text_dim)
        # pix2pix ends in 7x7; with three channels out that one layer took a fifth of a training step.
        self.head = padded_conv(width, 3, 3, bias=True)
        self.colour = nn.Conv2d(width, 9, 1) if output == "mapped" else None
        self.colour_text = nn.Linear(text_dim, 12) if output == "mapped" and text_dim else None
        # The untrained network returns the photo (or grey): the first steps learn the edit, not the photo.
        for layer in (self.head[1], self.colour, self.colour_text):
            if layer is not None:
                nn.init.zeros_(layer.weight)  # pyright: ignore[reportArgumentType]
                nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, h_BCHW: torch.Tensor, photo_BCHW: torch.Tensor, pooled_BD: torch.Tensor) -> torch.Tensor:
        """Returns the edited photo, [B, 3, H, W]; only ``direct`` stays inside [-1, 1] by itself."""
        h_BCHW = self.up2(self.up1(h_BCHW, pooled_BD), pooled_BD)
        change_BCHW = self.head(h_BCHW)
        if self.output == "direct":
            return torch.tanh(change_BCHW)
        if self.colour is not None:
            change_BCHW = change_BCHW + self._colour_change(self.colour(h_BCHW), photo_BCHW, pooled_BD)
        return photo_BCHW + change_BCHW

    def _colour_change(
        self, matrix_BKHW: torch.Tensor, photo_BCHW: torch.Tensor, pooled_BD: torch.Tensor
    ) -> torch.Tensor:
        """The photo through ``matrix - identity``: three products with one colour channel each, no 5-d tensor."""
        shift: torch.Tensor | float = 0.0
        if self.colour_text is not None:
            text_BK11 = self.colour_text(pooled_BD)[:, :, None, None]
            matrix_BKHW, shift = matrix_BKHW + text_BK11[:, :9], text_BK11[:, 9:]
        red, green, blue = photo_BCHW[:, 0:1], photo_BCHW[:, 1:2], photo_BCHW[:, 2:3]
        return matrix_BKHW[:, 0:3] * red + matrix_BKHW[:, 3:6] * green + matrix_BKHW[:, 6:9] * blue + shift


class Generator(nn.Module):
    """Photo and prompt in, edited photo out.

    Args:
        width: Channels of the first layer (E2GAN: 64); the middle has four times as many.
        text_dim: Size of a prompt token.
        heads: Attention heads of the Transformer block.
        upsample: Up-sampling of US and Upsample.
        output: Output head, see `Upsample`.
        modulate: The pooled prompt also scales and shifts the features of US and Upsample.
    """

    def __init__(
        self,
        width: int = 64,
        text_dim: int = 384,
        heads: int = 4,
        upsample: UpsampleKind = "shuffle",
        output: OutputKind = "mapped",
        modulate: bool = True,
    ) -> None:
        super().__init__()
        channels, pooled_dim = 4 * width, text_dim if modulate else 0
        self.text_dim = text_dim
        self.downsample = nn.Sequential(
            ConvBlock(3, width, 7),
            ConvBlock(width, 2 * width, 3, stride=2),
            ConvBlock(2 * width, channels, 3, stride=2),
        )
        self.res1 = ResBlock(channels)
        self.res2 = ResBlock(channels)
        self.ds = ConvBlock(channels, channels, 3, stride=2)
        self.transformer = TransformerBlock(channels, text_dim, heads)
        self.us = UpBlock(channels, channels, upsample, pooled_dim)
        self.res3 = ResBlock(channels)
        self.upsample = Upsample(width, upsample, output, pooled_dim)

    def forward(self, x_BCHW: torch.Tensor, text_BTD: torch.Tensor) -> torch.Tensor:
        """Edits photos.

        Args:
            x_BCHW: Photos, float in [-1, 1]; height and width are multiples of 16.
            text_BTD: Prompt tokens; padding rows are exactly 0.

        Returns:
            Edited photos of the same shape, about [-1, 1] (clamp before display).
        """
        pooled_BD = pooled_of(text_BTD)
        skip_BCHW = self.res2(self.res1(self.downsample(x_BCHW)))
        h_BCHW = self.transformer(self.ds(skip_BCHW), text_BTD)
        # Around the low-resolution middle: fine structure need not pass through it.
        h_BCHW = self.us(h_BCHW, pooled_BD) + skip_BCHW
        return self.upsample(self.res3(h_BCHW), x_BCHW, pooled_BD)
