"""Bytes of a photo -> pixels, with bounded memory, whatever the bytes are.

The size is read from the header and checked before any pixel is decoded; only common photo formats are tried. Bad
data is a status, never an exception.

Example:
    photo = decode_photo(Path("cat.jpg").read_bytes(), max_megapixels=64)
    photo.status, photo.image_HWC  # ("ok", uint8 array)
"""

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MIN_SIDE = 16
MAX_PHOTO_BYTES = 128 * 2**20

STATUS_HELP = {
    "ok": "decoded",
    "empty": "the file has no bytes",
    "missing": "no such file or object",
    "unreadable": "the file or object cannot be read",
    "too-many-bytes": "the file is larger than 128 MiB",
    "not-an-image": "the bytes are no image",
    "format-not-allowed": "an image or document of another kind than JPEG, PNG, WebP, GIF, BMP, TIFF",
    "too-many-pixels": "more pixels than photos.max_megapixels allows",
    "too-small": f"a side is shorter than {MIN_SIDE} pixels",
    "truncated": "the file ends too early",
    "broken": "the image data is damaged",
    "unsupported-pixels": "a kind of pixels that has no defined colour",
    "out-of-memory": "decoding needs more memory than there is",
}

# First bytes of things that people take for photos, or that some decoders would run.
_OTHER_KINDS = (
    b"%PDF",
    b"SIMPLE  =",
    b"<svg",
    b"<?xml",
    b"%!PS",
    b"\x00\x00\x00\x0cJXL ",
    b"\xff\x0a",
    b"8BPS",
    b"\x00\x00\x01\x00",
    b"P6",
)
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
# Its two subjects, size and damaged metadata, are dealt with here; `catch_warnings` would not be safe between threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
_TILE_WIDTH_TAG, _TILE_LENGTH_TAG = 322, 323


@dataclass(frozen=True)
class DecodedPhoto:
    """Result of decoding.

    Attributes:
        status: ``ok`` or a key of `STATUS_HELP`.
        image_HWC: RGB, uint8; None unless ``ok``.
    """

    status: str
    image_HWC: np.ndarray | None = None


def decode_photo(data: bytes, max_megapixels: float) -> DecodedPhoto:
    """Decode a photo to RGB: upright, first frame, transparency over white.

    Args:
        data: Bytes of the file.
        max_megapixels: More pixels than this are refused before decoding.
    """
    if not data:
        return DecodedPhoto("empty")
    if len(data) > MAX_PHOTO_BYTES:
        return DecodedPhoto("too-many-bytes")
    try:
        return _decode(data, max_megapixels * 1e6)
    except Image.DecompressionBombError:
        return DecodedPhoto("too-many-pixels")
    except Image.UnidentifiedImageError:
        return DecodedPhoto(_unidentified(data))
    except MemoryError:
        return DecodedPhoto("out-of-memory")
    except Exception as error:  # noqa: BLE001 - decoders raise anything on hostile bytes; a bad photo is a row, not a crash
        return DecodedPhoto("truncated" if "truncated" in str(error).lower() else "broken")


def _decode(data: bytes, max_pixels: float) -> DecodedPhoto:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if width * height > max_pixels or _tile_pixels(image) > max_pixels:
            return DecodedPhoto("too-many-pixels")
        if min(width, height) < MIN_SIDE:
            return DecodedPhoto("too-small")
        image.load()
        rgb = _to_rgb(image)
        if rgb is None:
            return DecodedPhoto("unsupported-pixels")
        turn = _TRANSPOSE.get(_orientation(image))
        if turn is not None:
            rgb = rgb.transpose(turn)
        return DecodedPhoto("ok", np.asarray(rgb, dtype=np.uint8).copy())


def _tile_pixels(image: Image.Image) -> int:
    """Pixels of one TIFF tile, which may be far larger than the image itself."""
    tags: Any = getattr(image, "tag_v2", None)
    if not tags:
        return 0
    return int(tags.get(_TILE_WIDTH_TAG, 0)) * int(tags.get(_TILE_LENGTH_TAG, 0))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 - damaged metadata does not make the pixels worse
        return 1


def _to_rgb(image: Image.Image) -> Image.Image | None:
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return _from_deep(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode in {"LAB", "HSV"}:
        return None
    return image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image | None:
    """16-bit, 32-bit and float grey to 8 bits; Pillow's own conversion would clip at 255."""
    grey_HW = np.asarray(image).astype(np.float32)
    if not np.isfinite(grey_HW).all() or grey_HW.min() < 0:
        return None
    top = float(grey_HW.max())
    if image.mode == "F":
        scale = 255.0 if top <= 1 else 1.0 if top <= 255 else 255 / 65535
    elif image.mode == "I":
        scale = 1.0 if top <= 255 else 255 / 65535
    else:
        scale = 255 / 65535
    eight_HW = np.clip(grey_HW * scale + 0.5, 0, 255).astype(np.uint8)
    return Image.fromarray(eight_HW).convert("RGB")


def _unidentified(data: bytes) -> str:
    head = data[:64].lstrip()
    return "format-not-allowed" if head.startswith(_OTHER_KINDS) or head[4:8] == b"ftyp" else "not-an-image"
