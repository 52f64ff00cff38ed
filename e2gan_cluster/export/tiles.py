"""Photos of any size through a network that wants multiples of 16, or one fixed size; numpy and Pillow only.

Small photos are padded by reflection. Photos above `MAX_PIXELS` are edited in overlapping tiles whose colours follow
an edit of the whole photo at reduced size, because instance norm sees only what is in its tile.

Example:
    >>> edited_HWC = edit_any_size(run, photo_HWC, side=None)
"""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from PIL import Image

from e2gan_cluster.export.names import SIZE_MULTIPLE

MAX_PIXELS = 1024 * 1024
"""Largest image given to the network at once; about 1 GB of activations at width 64."""

MIN_SIDE = 2 * SIZE_MULTIPLE
TILE_SIDE = 1024
OVERLAP = 1 / 8
_MAX_CONTRAST = 1.5

Run = Callable[[np.ndarray], np.ndarray]
"""float32 ``[1, 3, H, W]`` in [-1, 1] to the same."""


def edit_any_size(run: Run, photo_HWC: np.ndarray, side: int | None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Edits a photo.

    Args:
        run: The network.
        photo_HWC: uint8 RGB.
        side: The network's fixed side, pixels; None = any multiple of 16.
        max_pixels: Larger photos are tiled.

    Returns:
        uint8 RGB of the photo's size.
    """
    height, width = photo_HWC.shape[:2]
    tile = side or _tile_side(max_pixels)
    fits = max(height, width) <= side if side else height * width <= max_pixels
    if fits:
        return to_uint8(edit_padded(run, photo_HWC, side))[:height, :width]
    scale = min(1.0, tile / max(height, width))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    whole_HWC = edit_padded(run, np.asarray(Image.fromarray(photo_HWC).resize(small, Image.Resampling.LANCZOS)), side)
    total_HWC = np.zeros(photo_HWC.shape, np.float32)
    weight_HW1 = np.zeros((height, width, 1), np.float32)
    for rows, columns in tiles(height, width, tile):
        edited_HWC = edit_padded(run, photo_HWC[rows, columns], side)
        edited_HWC = follow_tone(edited_HWC, _region(whole_HWC, rows, columns, scale))
        ramp_HW1 = (_ramp(edited_HWC.shape[0])[:, None] * _ramp(edited_HWC.shape[1])[None, :])[..., None]
        total_HWC[rows, columns] += edited_HWC * ramp_HW1
        weight_HW1[rows, columns] += ramp_HW1
    return to_uint8(total_HWC / weight_HW1)


def edit_padded(run: Run, photo_HWC: np.ndarray, side: int | None) -> np.ndarray:
    """Pads by reflection, runs, crops.

    Args:
        run: The network.
        photo_HWC: uint8 RGB.
        side: Fixed side or None.

    Returns:
        float32 ``[H, W, 3]``, about [-1, 1].
    """
    height, width = photo_HWC.shape[:2]
    bottom, right = (side - n if side else max(MIN_SIDE, -(-n // 16) * 16) - n for n in (height, width))
    padded_HWC = np.pad(photo_HWC, ((0, bottom), (0, right), (0, 0)), mode="symmetric")
    x_1CHW = np.ascontiguousarray(padded_HWC.transpose(2, 0, 1)[None], dtype=np.float32) / 127.5 - 1.0
    return np.asarray(run(x_1CHW))[0].transpose(1, 2, 0)[:height, :width]


def tiles(height: int, width: int, tile: int) -> Iterator[tuple[slice, slice]]:
    """Overlapping tiles that cover an image, all of one size where it is large enough."""
    for top, left in product(_starts(height, tile), _starts(width, tile)):
        yield slice(top, min(top + tile, height)), slice(left, min(left + tile, width))


def follow_tone(tile_HWC: np.ndarray, target_HWC: np.ndarray) -> np.ndarray:
    """Gives a tile the mean and contrast, per colour, of the same region in the edit of the whole photo."""
    mean, wanted = tile_HWC.mean((0, 1)), target_HWC.mean((0, 1))
    gain = (target_HWC.std((0, 1)) + 1e-3) / (tile_HWC.std((0, 1)) + 1e-3)
    return (tile_HWC - mean) * np.clip(gain, 1 / _MAX_CONTRAST, _MAX_CONTRAST) + wanted


def to_uint8(image_HWC: np.ndarray) -> np.ndarray:
    """[-1, 1] (clipped) to uint8, rounded."""
    return np.round((np.clip(image_HWC, -1, 1) + 1) * 127.5).astype(np.uint8)


def _tile_side(max_pixels: int) -> int:
    return max(MIN_SIDE, min(TILE_SIDE, int(max_pixels**0.5) // SIZE_MULTIPLE * SIZE_MULTIPLE))


def _starts(length: int, tile: int) -> list[int]:
    if length <= tile:
        return [0]
    step = tile - max(1, int(tile * OVERLAP))
    count = -(-(length - tile) // step) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _ramp(length: int) -> np.ndarray:
    """Weight that falls to almost 0 at both ends over the overlap."""
    edge = max(1, int(length * OVERLAP))
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1
    return np.minimum(distance / (edge + 1), 1.0).astype(np.float32)


def _region(whole_HWC: np.ndarray, rows: slice, columns: slice, scale: float) -> np.ndarray:
    height, width = whole_HWC.shape[:2]
    top, left = min(int(rows.start * scale), height - 1), min(int(columns.start * scale), width - 1)
    return whole_HWC[top : max(top + 1, round(rows.stop * scale)), left : max(left + 1, round(columns.stop * scale))]
