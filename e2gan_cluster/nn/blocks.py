"""Layers shared by the networks: reflection-padded convolutions, up-sampling, prompt modulation, attention.

Whatever an adapter may change is a plain ``Conv2d`` or ``Linear`` without groups, so that stock PEFT wraps and
merges it. Normalisation is InstanceNorm without parameters: nothing to recalibrate, and one image's result never
depends on its neighbours in the batch.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

UpsampleKind = Literal["nearest", "bilinear", "shuffle"]

KEY_GRID = 16
"""Self-attention looks at a grid of 16 x 16 keys whatever the image's size: its cost is linear in pixels."""

MASKED = -1e4
"""Added to the logits of padding tokens; finite (and in float16's range) so that an empty prompt gives no NaN."""


def pooled_of(text_BTD: torch.Tensor) -> torch.Tensor:
    """Mean over the prompt tokens that are not padding (rows of zeros), L2-normalised.

    Args:
        text_BTD: Token states; padding rows are exactly 0.

    Returns:
        One vector per prompt, [B, D]; zeros for a prompt that is all padding.
    """
    real_BT1 = (text_BTD.abs().amax(dim=-1, keepdim=True) > 0).to(text_BTD.dtype)
    mean_BD = (text_BTD * real_BT1).sum(dim=1) / real_BT1.sum(dim=1).clamp_min(1.0)
    return F.normalize(mean_BD, dim=-1)


def padding_mask(text_BTD: torch.Tensor) -> torch.Tensor:
    """Additive attention mask [B, 1, 1, T]: 0 for tokens, `MASKED` for padding rows."""
    padding_BT = (text_BTD.abs().amax(dim=-1) == 0).to(text_BTD.dtype)
    return (padding_BT * MASKED)[:, None, None, :]


def padded_conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Sequential:
    """Reflection padding as a module of its own, then a convolution (PEFT ignores a conv's ``padding_mode``)."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, bias=bias)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(nn.ReflectionPad2d(kernel // 2), conv)


class ConvBlock(nn.Module):
    """Convolution, instance norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.conv = padded_conv(in_channels, out_channels, kernel, stride, bias)
        self.norm = nn.InstanceNorm2d(out_channels)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Returns features of the new width; halved in size for stride 2."""
        return F.relu(self.norm(self.conv(x_BCHW)))


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a skip (Johnson et al. 2016, as in pix2pix's ResNet generator)."""

    def __init__(self, channels: int, bias: bool = False) -> None:
        super().__init__()
        self.block = ConvBlock(channels, channels, 3, bias=bias)
        self.conv = padded_conv(channels, channels, 3, bias=bias)
        self.norm = nn.InstanceNorm2d(channels)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Returns features of the same shape."""
        return x_BCHW + self.norm(self.conv(self.block(x_BCHW)))


class Modulation(nn.Module):
    """Scale and shift per channel, linear in the pooled prompt (FiLM, Perez et al. 2018)."""

    def __init__(self, text_dim: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(text_dim, 2 * channels)
        nn.init.normal_(self.linear.weight, std=0.2)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_BCHW: torch.Tensor, pooled_BD: torch.Tensor) -> torch.Tensor:
        """Returns ``x * (1 + scale) + shift``."""
        scale_BC, shift_BC = self.linear(pooled_BD).chunk(2, dim=1)
        return x_BCHW * (1 + scale_BC[:, :, None, None]) + shift_BC[:, :, None, None]


class UpBlock(nn.Module):
    """Doubles height and width: up-sampling + convolution, instance norm, modulation, ReLU.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kind: ``shuffle`` convolves at low resolution and rearranges (Shi et al. 2016); the others resize
            first.
        text_dim: Size of the pooled prompt that modulates the output; 0 = no modulation.
    """

    def __init__(self, in_channels: int, out_channels: int, kind: UpsampleKind, text_dim: int) -> None:
        super().__init__()
        if kind == "shuffle":
            conv = padded_conv(in_channels, 4 * out_channels, 3)
            _init_icnr(conv)
            self.conv = nn.Sequential(conv, nn.PixelShuffle(2))
        else:
            align = {"align_corners": False} if kind == "bilinear" else {}
            resize = nn.Upsample(scale_factor=2, mode=kind, **align)
            self.conv = nn.Sequential(resize, padded_conv(in_channels, out_channels, 3))
        self.norm = nn.InstanceNorm2d(out_channels)
        self.modulation = Modulation(text_dim, out_channels) if text_dim else None

    def forward(self, x_BCHW: torch.Tensor, pooled_BD: torch.Tensor) -> torch.Tensor:
        """Returns features of twice the size."""
        h_BCHW = self.norm(self.conv(x_BCHW))
        if self.modulation is not None:
            h_BCHW = self.modulation(h_BCHW, pooled_BD)
        return F.relu(h_BCHW)


@torch.no_grad()
def _init_icnr(conv: nn.Sequential) -> None:
    """The four kernels of one output pixel start equal: no checkerboard (Aitken et al. 2017)."""
    layer = conv[1]
    assert isinstance(layer, nn.Conv2d)
    layer.weight.copy_(layer.weight[::4].repeat_interleave(4, dim=0))


class Attend(nn.Module):
    """The two products of attention, without weights; a module so that `profile` can count it."""

    def forward(
        self, q_BHND: torch.Tensor, k_BHMD: torch.Tensor, v_BHMD: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns the weighted values, [B, heads, N, D]."""
        return F.scaled_dot_product_attention(q_BHND, k_BHMD, v_BHMD, attn_mask=mask)


class Attention(nn.Module):
    """Multi-head attention of ``x`` to ``context`` (Vaswani et al. 2017) as four Linear layers."""

    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide into {heads} heads: change nets.width or nets.heads")
        self.heads = heads
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(context_dim, channels, bias=False)
        self.v = nn.Linear(context_dim, channels, bias=False)
        self.out = nn.Linear(channels, channels)
        self.attend = Attend()

    def forward(self, x_BNC: torch.Tensor, context_BMC: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Returns [B, N, C]."""
        q, k, v = (self._split(t) for t in (self.q(x_BNC), self.k(context_BMC), self.v(context_BMC)))
        return self.out(self.attend(q, k, v, mask).transpose(1, 2).flatten(2))

    def _split(self, t_BNC: torch.Tensor) -> torch.Tensor:
        return t_BNC.unflatten(2, (self.heads, -1)).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the prompt, MLP; each pre-normed and residual (E2GAN 3.1).

    Keys and values of self-attention come from the features resized to `KEY_GRID` squared positions, so memory is
    linear in the number of pixels: 67 MB of logits at 1024 px instead of 4 GB.
    """

    def __init__(self, channels: int, text_dim: int, heads: int) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(channels)
        self.self_attention = Attention(channels, channels, heads)
        self.norm_cross = nn.LayerNorm(channels)
        self.cross_attention = Attention(channels, text_dim, heads)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, x_BCHW: torch.Tensor, text_BTD: torch.Tensor) -> torch.Tensor:
        """Returns features of the same shape."""
        height, width = x_BCHW.shape[2:]
        grid = F.interpolate(x_BCHW, size=(KEY_GRID, KEY_GRID), mode="bilinear", align_corners=False)
        h_BNC, grid_BMC = _tokens(x_BCHW), _tokens(grid)
        h_BNC = h_BNC + self.self_attention(self.norm_self(h_BNC), self.norm_self(grid_BMC))
        h_BNC = h_BNC + self.cross_attention(self.norm_cross(h_BNC), text_BTD, padding_mask(text_BTD))
        h_BNC = h_BNC + self.mlp(self.norm_mlp(h_BNC))
        return h_BNC.transpose(1, 2).unflatten(2, (height, width))


def _tokens(x_BCHW: torch.Tensor) -> torch.Tensor:
    return x_BCHW.flatten(2).transpose(1, 2)
