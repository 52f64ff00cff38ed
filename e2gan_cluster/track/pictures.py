"""Pictures of the report as data URIs.

Sample grids are cut into one strip per column, so that a page can lay any two columns over each other without
holding a picture twice.
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from e2gan_cluster.evaluate.grids import read_grid


@dataclass(frozen=True)
class Strip:
    """One column of a grid: its pictures in a row.

    Attributes:
        label: Name of the column.
        count: Pictures.
        uri: ``data:image/webp;base64,...``
    """

    label: str
    count: int
    uri: str


def strips(grid_png: bytes | None, max_rows: int, max_cell: int) -> list[Strip]:
    """Cut a grid into strips; empty if there is no grid or it is damaged.

    Args:
        grid_png: From `evaluate.grids.grid_png`.
        max_rows: Pictures per strip at most.
        max_cell: Side of a picture at most, pixels.
    """
    columns = read_grid(grid_png) if grid_png else {}
    made = []
    for label, images_NHWC in columns.items():
        images_NHWC = images_NHWC[:max_rows]
        if len(images_NHWC):
            row = Image.fromarray(np.concatenate(list(images_NHWC), axis=1))
            if row.height > max_cell:
                row = row.resize((max_cell * len(images_NHWC), max_cell), Image.Resampling.LANCZOS)
            made.append(Strip(label, len(images_NHWC), webp_uri(row)))
    return made


def webp_uri(picture: Image.Image) -> str:
    """A picture as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=82, method=2)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def png_uri(png: bytes | None, max_width: int = 900) -> str:
    """A stored PNG as a data URI; empty if there is none or it is damaged."""
    if not png:
        return ""
    try:
        picture = Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    if picture.width > max_width:
        picture = picture.resize((max_width, round(picture.height * max_width / picture.width)))
    return webp_uri(picture)
