"""The baselines E2GAN is compared with: pix2pix's two generators (Isola et al. 2017), trained per concept.

Both take (and ignore) prompt tokens, so that one training loop serves all networks.
"""

import torch
import torch.nn.functional as F
from torch import nn

from e2gan_cluster.nn.blocks import ConvBlock, ResBlock, padded_conv


class ResNet9(nn.Module):
    """pix2pix's ResNet generator with 9 blocks: 11.38 M parameters at width 64.

    Args:
        width: Channels of the first layer (pix2pix: 64).
        blocks: ResNet blocks (pix2pix: 9 at 256 px).
    """

    def __init__(self, width: int = 64, blocks: int = 9) -> None:
        super().__init__()
        self.downsample = nn.Sequential(
            ConvBlock(3, width, 7, bias=True),
            ConvBlock(width, 2 * width, 3, 2, bias=True),
            ConvBlock(2 * width, 4 * width, 3, 2, bias=True),
        )
        self.blocks = nn.Sequential(*(ResBlock(4 * width, bias=True) for _ in range(blocks)))
        self.upsample = nn.Sequential(*_transposed(4 * width, 2 * width), *_transposed(2 * width, width))
        self.head = padded_conv(width, 3, 7, bias=True)

    def forward(self, x_BCHW: torch.Tensor, text_BTD: torch.Tensor | None = None) -> torch.Tensor:
        """Returns edited photos in [-1, 1]; height and width are multiples of 4."""
        del text_BTD
        return torch.tanh(self.head(self.upsample(self.blocks(self.downsample(x_BCHW)))))


class UNet256(nn.Module):
    """pix2pix's U-Net generator: 54.4 M parameters at width 64 and 8 levels (256 px).

    Instance norm in place of batch norm, no dropout: an export then equals what was trained.

    Args:
        width: Channels of the first layer (pix2pix: 64).
        levels: Halvings; the image's side must be a multiple of ``2 ** levels`` (8 for 256 px, 7 for 128 px).
    """

    def __init__(self, width: int = 64, levels: int = 8) -> None:
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(levels)]
        inputs = [3, *widths[:-1]]
        self.down = nn.ModuleList(nn.Conv2d(i, o, 4, 2, 1) for i, o in zip(inputs, widths, strict=True))
        ups: list[nn.Module] = []
        for level in reversed(range(levels)):
            channels = widths[level] * (1 if level == levels - 1 else 2)
            ups.append(nn.ConvTranspose2d(channels, widths[level - 1] if level else 3, 4, 2, 1))
        self.up = nn.ModuleList(ups)

    def forward(self, x_BCHW: torch.Tensor, text_BTD: torch.Tensor | None = None) -> torch.Tensor:
        """Returns edited photos in [-1, 1]."""
        del text_BTD
        skips: list[torch.Tensor] = []
        h_BCHW = x_BCHW
        for i, conv in enumerate(self.down):
            h_BCHW = conv(h_BCHW if i == 0 else F.leaky_relu(h_BCHW, 0.2))
            # The first level has no norm, and the last is a single position at the design size.
            if 0 < i < len(self.down) - 1:
                h_BCHW = F.instance_norm(h_BCHW)
            skips.append(h_BCHW)
        for i, conv in enumerate(self.up):
            h_BCHW = conv(F.relu(h_BCHW if i == 0 else torch.cat((h_BCHW, skips[-1 - i]), dim=1)))
            if i < len(self.up) - 1:
                h_BCHW = F.instance_norm(h_BCHW)
        return torch.tanh(h_BCHW)


def _transposed(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    conv = nn.ConvTranspose2d(in_channels, out_channels, 3, 2, 1, output_padding=1)
    return conv, nn.InstanceNorm2d(out_channels), nn.ReLU()
