"""Training losses. Every function takes float32 tensors and returns a scalar.

Adversarial losses act on the list of patch logits that `Discriminator` returns and average over scales.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F

GanKind = Literal["hinge", "lsgan", "nonsaturating"]
Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Distance of two batches in [-1, 1], one value per image (for example LPIPS, Zhang et al. 2018)."""


def discriminator_loss(kind: GanKind, real: Sequence[torch.Tensor], fake: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the discriminator minimises.

    Args:
        kind: ``hinge`` (Lim and Ye 2017), ``lsgan`` (Mao et al. 2017, eq. 2 with a=0, b=1) or ``nonsaturating``
            (Goodfellow et al. 2014, logistic form).
        real: Logits of the teacher's edits.
        fake: Logits of generated edits.

    Returns:
        Mean over scales and patches; 0 when real and fake are told apart perfectly.
    """
    return _mean(_real_term(kind, r) + _fake_term(kind, f) for r, f in zip(real, fake, strict=True))


def generator_loss(kind: GanKind, fake: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the generator minimises: its edits should look real (sources as in `discriminator_loss`)."""
    if kind == "hinge":
        return _mean(-f.float().mean() for f in fake)
    return _mean(_real_term(kind, f) for f in fake)


def l1_loss(output_BCHW: torch.Tensor, target_BCHW: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference (pix2pix, eq. 3)."""
    return (output_BCHW.float() - target_BCHW.float()).abs().mean()


def r1_penalty(real: Sequence[torch.Tensor], image_BCHW: torch.Tensor) -> torch.Tensor:
    """Half the squared gradient of the real logits at the real images (Mescheder et al. 2018, eq. 9).

    Args:
        real: Logits computed from ``image_BCHW``.
        image_BCHW: Real images that require a gradient.

    Returns:
        Scalar that can be differentiated again.
    """
    # Mean over patches: the size of a penalty should not depend on the image's size.
    total = torch.stack([r.float().mean(dim=(1, 2, 3)).sum() for r in real]).sum()
    (gradient,) = torch.autograd.grad(total, image_BCHW, create_graph=True)
    return 0.5 * gradient.float().square().sum(dim=(1, 2, 3)).mean()


def _real_term(kind: GanKind, logits: torch.Tensor) -> torch.Tensor:
    logits = logits.float()
    if kind == "hinge":
        return F.relu(1 - logits).mean()
    if kind == "lsgan":
        return (logits - 1).square().mean()
    return F.softplus(-logits).mean()


def _fake_term(kind: GanKind, logits: torch.Tensor) -> torch.Tensor:
    logits = logits.float()
    if kind == "hinge":
        return F.relu(1 + logits).mean()
    if kind == "lsgan":
        return logits.square().mean()
    return F.softplus(logits).mean()


def _mean(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms)).mean()
