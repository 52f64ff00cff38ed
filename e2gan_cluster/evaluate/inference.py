"""Runs a generator over photos, in batches, without leaving traces on it.

Example:
    >>> edits_NHWC = run_generator(generator, photos_NHWC, tokens_TD)
"""

import numpy as np
import torch
from torch import nn

from e2gan_cluster import busy


def to_signed(images_NHWC: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """uint8 [N,H,W,3] to float32 [N,3,H,W] in [-1, 1]."""
    x_BHWC = torch.from_numpy(np.ascontiguousarray(images_NHWC)).to(device)
    return x_BHWC.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def to_uint8(x_BCHW: torch.Tensor) -> np.ndarray:
    """[-1, 1] (clipped) to uint8 [N,H,W,3], rounded."""
    scaled_BCHW = x_BCHW.float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    return scaled_BCHW.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


@busy.working()
def run_generator(
    generator: nn.Module, inputs_NHWC: np.ndarray, tokens_TD: torch.Tensor | np.ndarray, batch_size: int = 16
) -> np.ndarray:
    """Edits photos with one prompt.

    The generator's training mode is restored afterwards.

    Args:
        generator: ``G(x_BCHW in [-1, 1], text_BTD) -> BCHW`` (a `PeftModel` too).
        inputs_NHWC: Photos, uint8, sides multiples of 16.
        tokens_TD: Prompt tokens, float32.
        batch_size: Photos per forward pass.

    Returns:
        uint8, same shape as ``inputs_NHWC``.
    """
    device = next(generator.parameters()).device
    text_TD = torch.as_tensor(tokens_TD, dtype=torch.float32, device=device)
    was_training = generator.training
    generator.eval()
    outputs = []
    try:
        with torch.inference_mode():
            for start in range(0, len(inputs_NHWC), batch_size):
                x_BCHW = to_signed(inputs_NHWC[start : start + batch_size], device)
                outputs.append(to_uint8(generator(x_BCHW, text_TD.expand(len(x_BCHW), -1, -1))))
    finally:
        generator.train(was_training)
    return np.concatenate(outputs) if outputs else np.zeros_like(inputs_NHWC)
