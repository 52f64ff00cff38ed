"""A PNG writer for the one case of pair shards, 8-bit RGB, at about a third of a general writer's time.

Every row is filtered by its left neighbour (PNG, 3rd edition, 9.2: filter type 1), and deflate looks for runs only: a
search for longer repetitions gains nothing on photos. The files are 5 % larger than Pillow's at level 3.

Example:
    >>> Image.open(io.BytesIO(encode_png(image_HWC)))
"""

import struct
import zlib

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BIT_DEPTH, _RGB, _FILTER_SUB = 8, 2, 1
_LEVEL, _WINDOW_BITS, _MEMORY_LEVEL = 1, 15, 9


def encode_png(image_HWC: np.ndarray) -> bytes:
    """The picture as a PNG file; the same bytes for the same picture.

    Args:
        image_HWC: uint8, three channels.
    """
    height, width, channels = image_HWC.shape
    if image_HWC.dtype != np.uint8 or channels != 3:
        raise ValueError(f"uint8 [H,W,3] is needed, not {image_HWC.dtype} {list(image_HWC.shape)}")
    lines_HL = np.empty((height, 1 + 3 * width), np.uint8)
    lines_HL[:, 0] = _FILTER_SUB
    filtered_HWC = lines_HL[:, 1:].reshape(height, width, 3)
    filtered_HWC[:, :1] = image_HWC[:, :1]
    np.subtract(image_HWC[:, 1:], image_HWC[:, :-1], out=filtered_HWC[:, 1:])
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, zlib.Z_RLE)
    data = deflate.compress(lines_HL.data) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, _BIT_DEPTH, _RGB, 0, 0, 0)
    return b"".join([_SIGNATURE, _chunk(b"IHDR", header), _chunk(b"IDAT", data), _chunk(b"IEND", b"")])


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return b"".join([struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)])
