"""One row of a pair shard, and a shard's Parquet bytes.

The image columns follow the Hugging Face convention (`struct<bytes, path>`).
The same rows give the same bytes: fixed writer options, page checksums, no timestamp.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from e2gan_cluster.pairs.png import encode_png

OK = "ok"
SCORES = ("change", "std", "direction", "clip_image", "clip_direction", "clip_text")
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("input_image", _IMAGE),
    ("edited_image", _IMAGE),
    ("edit_prompt", pa.string()),
    ("concept", pa.string()),
    ("source_id", pa.string()),
    ("crop", pa.int32()),
    ("seed", pa.int64()),
    ("status", pa.string()),
    ("reason", pa.string()),
    ("scores", pa.struct([(name, pa.float32()) for name in SCORES])),
]
# Pictures are compressed already: a second pass would cost time and gain nothing.
_COMPRESSION = {
    "input_image.bytes": "none",
    "edited_image.bytes": "none",
    **dict.fromkeys(("input_image.path", "edited_image.path"), "zstd"),
    **{name: "zstd" for name, kind in _COLUMNS if not pa.types.is_struct(kind)},
    **{f"scores.{name}": "zstd" for name in SCORES},
}
_PLAIN = {"string": "string", "int32": "int32", "int64": "int64"}


def _features() -> dict[str, Any]:
    """Hugging Face feature types, so that the image columns open as pictures."""
    features: dict[str, Any] = {
        name: {"_type": "Image"} if kind is _IMAGE else {"dtype": _PLAIN.get(str(kind), ""), "_type": "Value"}
        for name, kind in _COLUMNS
    }
    features["scores"] = {name: {"dtype": "float32", "_type": "Value"} for name in SCORES}
    return features


SCHEMA = pa.schema(_COLUMNS, metadata={"huggingface": json.dumps({"info": {"features": _features()}})})


@dataclass
class Row:
    """One pair, kept or dropped.

    Attributes:
        source_id: Content hash of the photo.
        crop: Which square of it.
        seed: Seed of the noise.
        status: `ok` or a short reason code.
        reason: A sentence for people where the status is not `ok`.
        input_image: Encoded square of the photo; None where it can't be read.
        edited_image: Encoded edit; None where there is none.
        scores: What the filters measured.
    """

    source_id: str
    crop: int
    seed: int
    status: str = OK
    reason: str = ""
    input_image: bytes | None = None
    edited_image: bytes | None = None
    scores: dict[str, float] = field(default_factory=dict)


def encode_image(image_HWC: np.ndarray, image_format: str) -> bytes:
    """A uint8 [H,W,3] picture in the shards' encoding; the same bytes for the same picture."""
    if image_format == "png":
        return encode_png(image_HWC)
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, image_format.upper(), quality=95)
    return buffer.getvalue()


def decode_image(data: bytes) -> np.ndarray:
    """The uint8 [H,W,3] picture of `encode_image`."""
    with Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "JPEG")) as picture:
        return np.asarray(picture.convert("RGB"))


def shard_bytes(rows: Sequence[Row], concept: str, prompt: str, image_format: str) -> bytes:
    """The Parquet file of one shard: fixed writer options, page checksums, nothing that depends on time or place.

    Args:
        rows: The pairs, in order.
        concept: Name of the concept.
        prompt: Its edit prompt.
        image_format: Ending of the pictures' file names.
    """

    def image(data: bytes | None, row: Row, kind: str) -> dict[str, Any] | None:
        if data is None:
            return None
        return {"bytes": data, "path": f"{row.source_id}-{row.crop}-{kind}.{image_format}"}

    columns: dict[str, list[Any]] = {
        "input_image": [image(row.input_image, row, "photo") for row in rows],
        "edited_image": [image(row.edited_image, row, concept) for row in rows],
        "edit_prompt": [prompt] * len(rows),
        "concept": [concept] * len(rows),
        "source_id": [row.source_id for row in rows],
        "crop": [row.crop for row in rows],
        "seed": [row.seed for row in rows],
        "status": [row.status for row in rows],
        "reason": [row.reason for row in rows],
        "scores": [{name: row.scores.get(name) for name in SCORES} for row in rows],
    }
    arrays = [pa.array(columns[name], type=kind) for name, kind in _COLUMNS]
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_arrays(arrays, schema=SCHEMA),
        sink,
        row_group_size=max(len(rows), 1),
        compression=_COMPRESSION,  # pyright: ignore[reportArgumentType]
        use_dictionary=["edit_prompt", "concept", "status"],  # pyright: ignore[reportArgumentType]
        write_statistics=["source_id", "status"],  # pyright: ignore[reportArgumentType]
        write_page_checksum=True,
        version="2.6",
        data_page_version="1.0",
    )
    return sink.getvalue()
