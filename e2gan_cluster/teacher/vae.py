"""Photos to latents through a pipeline's VAE, with the precision that the VAE needs.

Example:
    >>> latents = encode_mean(pipe, images_BHWC) * pipe.vae.config.scaling_factor
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from e2gan_cluster.teacher.runtime import to_signed


@contextmanager
def vae_precision(pipe: Any) -> Iterator[torch.dtype]:
    """The dtype to feed to the VAE; XL's overflows in float16 (its config says so) and is float32 for the block."""
    if pipe.vae.dtype == torch.float16 and getattr(pipe.vae.config, "force_upcast", False):
        pipe.vae.to(torch.float32)
        try:
            yield torch.float32
        finally:
            pipe.vae.to(torch.float16)
    else:
        yield pipe.vae.dtype


def encode_mean(pipe: Any, images_BHWC: np.ndarray) -> torch.Tensor:
    """Means of the photos' latent distributions [B, C, h, w], not scaled.

    Args:
        pipe: A pipeline with a 2-D VAE.
        images_BHWC: Photos, uint8.
    """
    with vae_precision(pipe) as dtype:
        return pipe.vae.encode(to_signed(images_BHWC, pipe._execution_device, dtype)).latent_dist.mode()
