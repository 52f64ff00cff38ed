"""torch module to ONNX graph, and what is done to a graph afterwards: names, defaults, checks.

Example:
    >>> program = to_onnx(module, (image, text), [IMAGE, TEXT], resolution=None)
    >>> save_graph(program, path, {META_BASE: base_id})
"""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from onnx import numpy_helper
from onnxscript import optimizer
from torch import nn
from torch.export import Dim

from e2gan_cluster.errors import UserError
from e2gan_cluster.export.names import EDITED, IMAGE, OPSET, SIZE_MULTIPLE, lora_a, lora_b

EXAMPLE_HEIGHT, EXAMPLE_WIDTH = 64, 80
_NO_LIMIT = 2**40  # bytes
_LOUD = ("torch.onnx", "torch.__trace", "onnxscript", "onnx_ir")
_SUITABILITY = re.compile(
    r"Model should perform well with (.+?)( if modified to have fixed input shapes| as is): (\w+)"
)


class ExportError(UserError):
    """A graph that cannot be made, or that does not compute what torch computes."""


def image_example(resolution: int | None) -> torch.Tensor:
    """An image to trace with, ``[1, 3, H, W]``; height and width differ when the size is free."""
    height, width = (resolution, resolution) if resolution else (EXAMPLE_HEIGHT, EXAMPLE_WIDTH)
    return torch.linspace(-1, 1, 3 * height * width).view(1, 3, height, width)


def image_axes(resolution: int | None) -> dict[int, Any]:
    """Free axes of an image: none, or height and width as multiples of 16."""
    if resolution:
        return {}
    return {2: SIZE_MULTIPLE * Dim("rows16", min=2), 3: SIZE_MULTIPLE * Dim("columns16", min=2)}


def to_onnx(
    module: nn.Module, args: tuple[Any, ...], axes: tuple[Any, ...], input_names: Sequence[str], opset: int = OPSET
) -> onnx.ModelProto:
    """Exports a module with torch's graph exporter.

    Args:
        module: In inference mode.
        args: Example arguments.
        axes: Free axes, shaped like ``args``.
        input_names: Names of the flattened arguments, in order.
        opset: ONNX opset.

    Returns:
        Checked model with output ``edited``.

    Raises:
        ExportError: torch or the ONNX checker refuses.
    """
    try:
        with _quiet():
            program = torch.onnx.export(
                module, args, dynamic_shapes=axes, dynamo=True, opset_version=opset, verbose=False, optimize=True
            )
        assert program is not None
        for value, name in zip(program.model.graph.inputs, input_names, strict=True):
            value.name = name
        program.model.graph.outputs[0].name = EDITED
        model = program.model_proto
        for node in model.graph.node:
            # Stack traces and local paths of the exporting machine.
            del node.metadata_props[:]
        for value in (*model.graph.input, *model.graph.output):
            del value.metadata_props[:]
        del model.graph.value_info[:]
        del model.graph.metadata_props[:]
        check_model(model, opset)
    except (RuntimeError, onnx.checker.ValidationError, torch.onnx.OnnxExporterError) as error:
        raise ExportError(f"the generator cannot be exported to ONNX opset {opset}: {first_line(error)}") from error
    return model


def check_model(model: onnx.ModelProto, opset: int = OPSET) -> None:
    """ONNX checker with shape inference, and the opset.

    Raises:
        ExportError: Another opset than the stated one.
        onnx.checker.ValidationError: The model is malformed.
    """
    onnx.checker.check_model(model, full_check=True)
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found.get("") != opset:
        raise ExportError(
            f"the exported graph is of opset {found.get('')}, not {opset}", "align torch with constraints.txt"
        )


def free_ranks(model: onnx.ModelProto, layers: Sequence[str]) -> None:
    """Lets every layer's factors have any rank, in place.

    Ranks occur nowhere else: the product of the factors has the weight's shape. Traced as free axes they would
    only make torch's exporter several times slower.
    """
    inputs = {value.name: value for value in model.graph.input}
    for number, layer in enumerate(layers):
        for name, axis in ((lora_a(layer), 0), (lora_b(layer), 1)):
            inputs[name].type.tensor_type.shape.dim[axis].dim_param = f"rank{number}"
    check_model(model)


def with_defaults(model: onnx.ModelProto) -> onnx.ModelProto:
    """Makes every input but the image optional, with rank-1 zeros of its type as default.

    ONNX Runtime's adapters replace exactly such values: initializers that are also graph inputs.
    """
    optional = onnx.ModelProto()
    optional.CopyFrom(model)
    for value in optional.graph.input:
        if value.name != IMAGE:
            shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            optional.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, dtype), value.name))
    return optional


def with_effect(model: onnx.ModelProto, tensors: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Builds one effect into a graph: its tensors become constants, and all that follows from them is computed now.

    Args:
        model: Graph with the effect as inputs.
        tensors: Value of every input but the image.

    Returns:
        A graph whose only input is the image; adapted weights are plain weights, the prompt's branch is gone.
    """
    merged = onnx.ModelProto()
    merged.CopyFrom(model)
    images = [value for value in merged.graph.input if value.name == IMAGE]
    del merged.graph.input[:]
    merged.graph.input.extend(images)
    merged.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in tensors.items())
    with _quiet():
        typed = onnx_ir.from_proto(merged)
        optimizer.optimize(typed, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT)
        merged = onnx_ir.to_proto(typed)
    check_model(merged)
    return merged


def save_graph(model: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> Path:
    """Writes a model with metadata that every runtime can read."""
    onnx.helper.set_model_props(model, dict(metadata))
    model.producer_name, model.doc_string = "e2gan_cluster", ""
    onnx.save(model, path)
    return path


def mobile_usability(onnx_path: Path) -> dict[str, str]:
    """Verdicts of ONNX Runtime's mobile usability check.

    Args:
        onnx_path: An exported graph.

    Returns:
        ``NNAPI``, ``CoreML NeuralNetwork``, ``CoreML MLProgram`` -> ``YES``, ``MAYBE`` or ``NO``, each also with
        `` (fixed size)`` where the tool judged the graph with its sizes fixed; ``cpu``: ``YES``, the graph
        loads.
    """
    from onnxruntime.tools.mobile_helpers import usability_checker

    verdicts = {"cpu": "YES"}
    logger = logging.Logger("usability", logging.INFO)
    records = _Records()
    logger.addHandler(records)
    usability_checker.analyze_model(onnx_path, skip_optimize=False, logger=logger)
    for line in records.lines:
        match = _SUITABILITY.match(line)
        if match:
            verdicts[match[1] + (" (fixed size)" if "fixed" in match[2] else "")] = match[3]
    return verdicts


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports missing torchvision and shared axis names, and traces itself where logs are kept."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """The beginning of an error's message, for a message of ours."""
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
