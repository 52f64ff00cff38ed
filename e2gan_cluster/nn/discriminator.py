"""The judge: a PatchGAN that sees photo and (edited) photo together and knows the prompt.

70x70 PatchGAN as in pix2pix (Isola et al. 2017, 6.1.2) with instance norm; the prompt enters by projection
(Miyato and Koyama 2018, eq. 3); more scales as in pix2pixHD (Wang et al. 2018, 3.2).
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as _spectral_norm


class PatchDiscriminator(nn.Module):
    """One scale: five 4x4 convolutions, receptive field 70 pixels.

    Args:
        width: Channels of the first layer (pix2pix: 64).
        text_dim: Size of the pooled prompt; 0 = the prompt is not seen.
        spectral_norm: Constrain every convolution (Miyato et al. 2018).
    """

    def __init__(self, width: int, text_dim: int, spectral_norm: bool) -> None:
        super().__init__()
        widths = (6, width, 2 * width, 4 * width, 8 * width)
        layers: list[nn.Module] = []
        for i in range(4):
            layers.append(_conv(widths[i], widths[i + 1], 2 if i < 3 else 1, spectral_norm))
            if i:
                layers.append(nn.InstanceNorm2d(widths[i + 1]))
            layers.append(nn.LeakyReLU(0.2))
        self.features = nn.Sequential(*layers)
        self.logits = _conv(8 * width, 1, 1, spectral_norm)
        self.text = nn.Linear(text_dim, 8 * width) if text_dim else None

    def forward(self, pair_BCHW: torch.Tensor, pooled_BD: torch.Tensor | None) -> torch.Tensor:
        """Returns one logit per patch, [B, 1, h, w]."""
        h_BCHW = self.features(pair_BCHW)
        logits_BCHW = self.logits(h_BCHW)
        if self.text is not None and pooled_BD is not None:
            weight_BC = self.text(pooled_BD) / h_BCHW.shape[1] ** 0.5
            prompt_BHW = torch.einsum("bchw,bc->bhw", h_BCHW, weight_BC)
            # The last convolution's 4x4 window shrinks the map by one: average to the same positions.
            logits_BCHW = logits_BCHW + F.avg_pool2d(prompt_BHW[:, None], 2, stride=1)
        return logits_BCHW


class Discriminator(nn.Module):
    """PatchGAN at one or more scales.

    Args:
        width: Channels of the first layer.
        text_dim: Size of the pooled prompt; 0 = unconditional on the prompt (pix2pix).
        scales: Number of copies; each sees the pair at half the size of the one before.
        spectral_norm: Constrain every convolution.
    """

    def __init__(self, width: int = 64, text_dim: int = 384, scales: int = 1, spectral_norm: bool = False) -> None:
        super().__init__()
        self.scales = nn.ModuleList(PatchDiscriminator(width, text_dim, spectral_norm) for _ in range(scales))

    def forward(
        self, source_BCHW: torch.Tensor, image_BCHW: torch.Tensor, pooled_BD: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Judges images.

        Args:
            source_BCHW: Photos in [-1, 1], at least 32 px (times 2 per further scale).
            image_BCHW: Their edits, real or generated.
            pooled_BD: Pooled prompts.

        Returns:
            Patch logits of every scale.
        """
        pair_BCHW = torch.cat((source_BCHW, image_BCHW), dim=1)
        outputs = []
        for i, net in enumerate(self.scales):
            outputs.append(net(F.avg_pool2d(pair_BCHW, 2**i) if i else pair_BCHW, pooled_BD))
        return outputs


def _conv(in_channels: int, out_channels: int, stride: int, spectral_norm: bool) -> nn.Module:
    conv = nn.Conv2d(in_channels, out_channels, 4, stride, padding=1)
    nn.init.normal_(conv.weight, std=0.02 if not spectral_norm else 0.1)
    nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
    return _spectral_norm(conv) if spectral_norm else conv
