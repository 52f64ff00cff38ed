"""Differentiable augmentation of what the discriminator sees (DiffAugment, Zhao et al. 2020).

Photo and edit are changed alike, real and generated pairs too; the random numbers come in from outside, so that a
resumed run repeats them.
"""

import torch
import torch.nn.functional as F

NUM_RANDOM = 7
"""Uniform random numbers per image."""


def augment_pair(pair_BCHW: torch.Tensor, uniform_BK: torch.Tensor) -> torch.Tensor:
    """Colour, translation and cut-out.

    Args:
        pair_BCHW: Photo and edit stacked on the channels, [B, 6, H, W] in [-1, 1].
        uniform_BK: `NUM_RANDOM` numbers in [0, 1) per row.

    Returns:
        Augmented pairs; gradients flow to ``pair_BCHW``.
    """
    return _cutout(_translate(_colour(pair_BCHW, uniform_BK), uniform_BK), uniform_BK)


def _colour(x_BCHW: torch.Tensor, uniform_BK: torch.Tensor) -> torch.Tensor:
    brightness, saturation, contrast = (uniform_BK[:, i].view(-1, 1, 1, 1, 1) for i in range(3))
    x = x_BCHW.unflatten(1, (-1, 3)) + (brightness - 0.5)
    grey = x.mean(dim=2, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    mean = x.mean(dim=(2, 3, 4), keepdim=True)
    return (mean + (x - mean) * (contrast + 0.5)).flatten(1, 2)


def _translate(x_BCHW: torch.Tensor, uniform_BK: torch.Tensor, ratio: float = 0.125) -> torch.Tensor:
    height, width = x_BCHW.shape[2:]
    reach_y, reach_x = int(height * ratio + 0.5), int(width * ratio + 0.5)
    padded = F.pad(x_BCHW, (reach_x, reach_x, reach_y, reach_y))
    rows = []
    for image_CHW, uniform_K in zip(padded.unbind(0), uniform_BK.tolist(), strict=True):
        top, left = int(uniform_K[3] * (2 * reach_y + 1)), int(uniform_K[4] * (2 * reach_x + 1))
        rows.append(image_CHW[:, top : top + height, left : left + width])
    return torch.stack(rows)


def _cutout(x_BCHW: torch.Tensor, uniform_BK: torch.Tensor, ratio: float = 0.5) -> torch.Tensor:
    height, width = x_BCHW.shape[2:]
    centre_y, centre_x = uniform_BK[:, 5:6] * height, uniform_BK[:, 6:7] * width
    rows_H = torch.arange(height, device=x_BCHW.device)
    cols_W = torch.arange(width, device=x_BCHW.device)
    in_rows_BH = (rows_H - centre_y).abs() <= ratio * height / 2
    in_cols_BW = (cols_W - centre_x).abs() <= ratio * width / 2
    keep_BHW = ~(in_rows_BH[:, :, None] & in_cols_BW[:, None, :])
    return x_BCHW * keep_BHW[:, None].to(x_BCHW.dtype)
