"""Safetensors files read with suspicion: bounded header, exact layout, finite numbers. No torch.

The format: 8 bytes little-endian header length, JSON header, tensor bytes. The library's own reader accepts flipped
bits in the body, which is what the manifest's sha256 is for.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from e2gan_cluster.errors import IntegrityError

MAX_HEADER_BYTES = 4 << 20
MAX_TENSORS = 20_000
MAX_DIMS = 8
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_FIX = "fetch it again; if it differs again, publish it anew with safetensors"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        dtype: Safetensors name, e.g. ``F32``.
        shape: Its sizes.
        begin: Where its bytes begin in the file.
        end: Where they end.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(data: bytes, what: str, file_bytes: int | None = None) -> dict[str, TensorInfo]:
    """Tensors of a file, if it is laid out exactly as the format says.

    Args:
        data: The file, or at least its header.
        what: Its name, for messages.
        file_bytes: Size of the whole file, if ``data`` is only its beginning.

    Raises:
        IntegrityError: Not safetensors, or a header that lies; never takes more than bounded time and memory.
    """
    file_bytes = len(data) if file_bytes is None else file_bytes
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > MAX_HEADER_BYTES or 8 + length > len(data):
        looks = _looks_like(data)
        raise IntegrityError(f"{what} is not a safetensors file{looks}: its header claims {length} bytes", _FIX)
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{what}: safetensors header is not valid JSON: {str(error)[:100]}", _FIX) from None
    if not isinstance(header, dict):
        raise IntegrityError(f"{what}: safetensors header is not an object", _FIX)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise IntegrityError(f"{what}: safetensors metadata must be texts", _FIX)
    if len(header) > MAX_TENSORS:
        raise IntegrityError(f"{what}: {len(header)} tensors, at most {MAX_TENSORS} are read", _FIX)
    tensors = {name: _tensor(name, value, 8 + length, what) for name, value in header.items()}
    position = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            raise IntegrityError(f"{what}: tensor {name[:100]!r} overlaps another or leaves a gap", _FIX)
        position = tensor.end
    if position != file_bytes:
        raise IntegrityError(f"{what}: {file_bytes} bytes, but its tensors end at {position}: cut or padded", _FIX)
    return tensors


def check_finite(data: bytes, tensors: Mapping[str, TensorInfo], what: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        IntegrityError: Names the tensor.
    """
    for name, tensor in tensors.items():
        if not _is_finite(memoryview(data)[tensor.begin : tensor.end], tensor.dtype):
            raise IntegrityError(
                f"{what}: tensor {name!r} holds NaN or infinity", "train it again: its training diverged"
            )


def _is_finite(body: memoryview, dtype: str) -> bool:
    import numpy as np

    if dtype == "BF16":  # exponent bits all ones
        return not bool(np.any((np.frombuffer(body, "<u2") & 0x7F80) == 0x7F80))
    if dtype in ("F64", "F32", "F16"):
        return bool(np.isfinite(np.frombuffer(body, f"<f{DTYPE_BYTES[dtype]}")).all())
    return True


def _tensor(name: str, value: Any, start: int, what: str) -> TensorInfo:
    shown = repr(name[:100])
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise IntegrityError(f"{what}: tensor {shown} is not described as safetensors asks", _FIX)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise IntegrityError(f"{what}: tensor {shown} has a number format that is not used here", _FIX)
    if not _are_sizes(shape, MAX_DIMS) or not _are_sizes(offsets, 2) or len(offsets) != 2:
        raise IntegrityError(f"{what}: tensor {shown} has a malformed shape or place", _FIX)
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise IntegrityError(f"{what}: tensor {shown} of shape {shape} does not take {end - begin} bytes", _FIX)
    return TensorInfo(dtype, tuple(shape), start + begin, start + end)


def _are_sizes(value: Any, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(type(n) is int and 0 <= n < 1 << 48 for n in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _looks_like(data: bytes) -> str:
    if data[:2] == b"PK":
        return " but a zip, perhaps a torch pickle"
    if data[:1] == b"\x80":
        return " but a pickle"
    return ""
