"""Graphs that are stored in float16 and computed in float32: half the bytes in an app, the speed and range of float32.

Example:
    >>> save_graph(with_defaults(in_halves(model)), Path("base-fp16.onnx"), metadata)
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from e2gan_cluster.export.graph import ExportError, check_model
from e2gan_cluster.export.names import IMAGE

MIN_NUMBERS = 256
"""Smaller constants (norms, biases, shapes) stay as they are: they save nothing."""

_WIDE = "_as_float32"
_HALF = "_as_float16"


def in_halves(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with float16 weights and float16 effect inputs, each widened by a Cast.

    ONNX Runtime folds the casts of weights when it loads the file. Inputs keep their names.

    Args:
        model: A base with its effect as inputs.

    Raises:
        ExportError: A weight is too large for float16.
    """
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    graph, casts = halved.graph, []
    for weight in graph.initializer:
        if weight.data_type != TensorProto.FLOAT or np.prod(weight.dims) < MIN_NUMBERS:
            continue
        casts.append(_cast(weight.name + _HALF, weight.name))
        weight.CopyFrom(
            numpy_helper.from_array(to_half(numpy_helper.to_array(weight), weight.name), weight.name + _HALF)
        )
    wide = {value.name: value.name + _WIDE for value in graph.input if value.name != IMAGE}
    for node in graph.node:
        node.input[:] = [wide.get(name, name) for name in node.input]
    for value in graph.input:
        if value.name in wide:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
            casts.append(_cast(value.name, wide[value.name]))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    check_model(halved)
    return halved


def to_half(value: np.ndarray, name: str) -> np.ndarray:
    """A float16 copy.

    Raises:
        ExportError: A number is too large for it.
    """
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    if not np.isfinite(half).all():
        raise ExportError(f"{name} has numbers above {np.finfo(np.float16).max}, too large for float16")
    return half


def _cast(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=TensorProto.FLOAT)
