"""Names and numbers shared by the exporter, the device runtime and the examples; light, no torch.

A device sees one graph input ``image`` (float32 ``[1, 3, H, W]``, RGB in [-1, 1], H and W multiples of 16) and one
output ``edited`` of the same shape. Everything of one effect is a set of named tensors: ``text`` (the encoded
prompt, ``[1, tokens, D]``) and, per adapted layer, ``<layer>.lora_A`` ``[rank, inputs]`` and ``<layer>.lora_B``
``[outputs, rank]`` (LoRA scaling already multiplied into B): float32, or float16 for ``base-fp16.onnx``.
"""

from typing import Literal

Format = Literal[
    "onnx-adapter", "onnx-adapter-fp16", "required-inputs", "merged", "merged-fp16", "merged-int8", "ort", "coreml"
]

FORMAT_VERSION = 1
"""Version of the on-device bundle; readers refuse a newer one."""

OPSET = 18
"""ONNX opset of every exported graph."""

SIZE_MULTIPLE = 16
"""Height and width must be multiples of this many pixels."""

IMAGE = "image"
EDITED = "edited"
TEXT = "text"

BASE_ONNX = "base.onnx"
BASE_INPUTS_ONNX = "base-inputs.onnx"
BASE_FP16_ONNX = "base-fp16.onnx"
BASE_ORT = "base.ort"
BASE_FILES = (BASE_ONNX, BASE_INPUTS_ONNX, BASE_FP16_ONNX, BASE_ORT)

FORMAT_FILES: dict[Format, str] = {
    "onnx-adapter": "adapter.onnx_adapter",
    "onnx-adapter-fp16": "adapter-fp16.onnx_adapter",
    "required-inputs": "lora_inputs.safetensors",
    "merged": "merged.onnx",
    "merged-fp16": "merged-fp16.onnx",
    "merged-int8": "merged-int8.onnx",
    "ort": "merged.ort",
    "coreml": "merged.mlpackage.zip",
}
"""File of each format inside an adapter version."""

META_FORMAT = "e2gan.format"
META_BASE = "e2gan.base_id"
META_KIND = "e2gan.kind"
META_LAYERS = "e2gan.layers"


def lora_a(layer: str) -> str:
    """Tensor name of a layer's first factor, ``[rank, inputs]``."""
    return f"{layer}.lora_A"


def lora_b(layer: str) -> str:
    """Tensor name of a layer's second factor, ``[outputs, rank]``."""
    return f"{layer}.lora_B"


def model_version(base_id: str) -> int:
    """The number that ties an ``.onnx_adapter`` file to its base.

    ONNX Runtime stores it and never compares it, so `Editor` does.

    Args:
        base_id: 12 hex digits.

    Returns:
        The first 28 bits of ``base_id``: fits the file's signed 32-bit field.
    """
    return int(base_id[:7], 16)
