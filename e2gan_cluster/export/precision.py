"""Merged graphs in 8-bit integers, calibrated on photos.

They keep ``image`` and ``edited`` in float32, so that an app swaps files without other changes.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx

from e2gan_cluster.export.graph import ExportError
from e2gan_cluster.export.names import IMAGE


def to_int8(merged: Path, target: Path, photos: Sequence[np.ndarray], keep_float: Sequence[str] = ()) -> Path:
    """Static quantization (QDQ, one scale per output channel) of the convolutions.

    Args:
        merged: fp32 graph.
        target: File to write.
        photos: Calibration images, float32 ``[1, 3, H, W]`` in [-1, 1].
        keep_float: Names of convolution nodes left in float32.

    Raises:
        ExportError: The quantizer refuses the graph.
    """
    from onnxruntime import quantization

    class Photos(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rows: Iterator[np.ndarray] = iter(photos)

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            photo = next(self.rows, None)
            return None if photo is None else {IMAGE: photo}

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantizer logs advice to the root logger
    try:
        quantization.quantize_static(
            merged,
            target,
            Photos(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(keep_float),
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        onnx.checker.check_model(onnx.load(target), full_check=True)
    except Exception as error:
        raise ExportError(f"{merged.name} cannot be quantized: {error}") from error
    finally:
        root.setLevel(level)
    return target


def edge_convolutions(merged: Path) -> list[str]:
    """Names of the convolutions that touch pixels: those fed by the image, and those with few outputs.

    Their rounding shows directly in the picture and they are a small part of the work.
    """
    graph = onnx.load(merged).graph
    weights = {w.name: list(w.dims) for w in graph.initializer}
    names = []
    for node in graph.node:
        if node.op_type == "Conv":
            outputs, inputs = (weights.get(node.input[1]) or [0, 0])[:2]
            if inputs <= 3 or outputs <= 9:
                names.append(node.name)
    return names
