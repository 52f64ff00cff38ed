"""Sample grids: columns of labelled pictures, as PNG that says what is where, so that it can be cut up again.

Example:
    >>> png = grid_png({"photo": photos_NHWC, "teacher": edits_NHWC, "adapter": outputs_NHWC})
    >>> read_grid(png)["teacher"].shape
    (8, 128, 128, 3)
"""

import io
import json
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

_GAP = 4
_LABEL = 20
_LAYOUT = "e2gan-grid"
_MAX_PIXELS = 64_000_000
_BACKGROUND = (255, 255, 255)
_INK = (32, 32, 32)


def grid_png(columns: Mapping[str, np.ndarray], max_rows: int = 8, cell: int | None = None) -> bytes:
    """Columns side by side, each with its label on top.

    Args:
        columns: Label -> uint8 [N,H,W,3]; row i of every column belongs to one photo. Shorter columns end
            earlier.
        max_rows: Rows at most.
        cell: Side of a picture in the grid, pixels; empty = that of the first picture.

    Returns:
        PNG bytes.

    Raises:
        ValueError: There is no picture.
    """
    rows = min(max((len(images) for images in columns.values()), default=0), max_rows)
    if rows == 0:
        raise ValueError("a grid needs at least one column with one picture")
    side = cell or next(images for images in columns.values() if len(images)).shape[1]
    width = len(columns) * (side + _GAP) + _GAP
    canvas = Image.new("RGB", (width, _LABEL + rows * (side + _GAP) + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for c, (label, images_NHWC) in enumerate(columns.items()):
        left = _GAP + c * (side + _GAP)
        draw.text((left, 4), _fitting(draw, label, side), fill=_INK, font=_font())
        for r, image_HWC in enumerate(images_NHWC[:rows]):
            canvas.paste(_thumbnail(image_HWC, side), (left, _LABEL + r * (side + _GAP)))
    counts = {label: min(len(images), rows) for label, images in columns.items()}
    return _png(canvas, json.dumps({"cell": side, "columns": counts}))


def read_grid(png: bytes) -> dict[str, np.ndarray]:
    """The columns of a picture made by `grid_png`.

    Args:
        png: PNG bytes.

    Returns:
        Label -> uint8 [N,cell,cell,3]; empty if the picture is no grid or is damaged.
    """
    try:
        picture = Image.open(io.BytesIO(png), formats=["PNG"])
        if picture.width * picture.height > _MAX_PIXELS:
            return {}
        layout = json.loads(picture.info[_LAYOUT])
        pixels_HWC = np.asarray(picture.convert("RGB"))
        side = int(layout["cell"])
        counts = {str(label): int(count) for label, count in layout["columns"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError):
        return {}
    columns = {}
    for c, (label, count) in enumerate(counts.items()):
        left = _GAP + c * (side + _GAP)
        tops = [_LABEL + r * (side + _GAP) for r in range(count)]
        cells = [pixels_HWC[top : top + side, left : left + side] for top in tops]
        if any(cell.shape != (side, side, 3) for cell in cells):
            return {}
        columns[label] = np.stack(cells) if cells else np.zeros((0, side, side, 3), np.uint8)
    return columns


def side_by_side(images: Mapping[str, np.ndarray], cell: int | None = None) -> bytes:
    """One row of labelled pictures.

    Args:
        images: Label -> uint8 [H,W,3].
        cell: Side of a picture, pixels; empty = that of the first picture.

    Returns:
        PNG bytes.
    """
    return grid_png({label: image_HWC[None] for label, image_HWC in images.items()}, max_rows=1, cell=cell)


def encode_png(image_HWC: np.ndarray) -> bytes:
    """One uint8 [H,W,3] picture as PNG."""
    return _png(Image.fromarray(image_HWC))


def _png(picture: Image.Image, layout: str | None = None) -> bytes:
    buffer, info = io.BytesIO(), PngImagePlugin.PngInfo()
    if layout:
        info.add_text(_LAYOUT, layout)
    picture.save(buffer, "PNG", optimize=False, pnginfo=info)
    return buffer.getvalue()


def _thumbnail(image_HWC: np.ndarray, side: int) -> Image.Image:
    picture = Image.fromarray(image_HWC)
    return picture if picture.size == (side, side) else picture.resize((side, side), Image.Resampling.LANCZOS)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(12)


def _fitting(draw: ImageDraw.ImageDraw, label: str, width: int) -> str:
    """The label, cut with an ellipsis if it is wider than its column."""
    text = " ".join(label.split())
    if draw.textlength(text, font=_font()) <= width:
        return text
    while text and draw.textlength(text + "...", font=_font()) > width:
        text = text[:-1]
    return text + "..."
