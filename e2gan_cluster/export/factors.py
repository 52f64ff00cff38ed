"""Reads a PEFT LoRA folder into plain factor matrices; numpy only.

Example:
    >>> factors = read_factors({"adapter_model.safetensors": data, "adapter_config.json": config})
    >>> factors["us.conv"].delta().shape  # what merging adds to the layer's weight, flattened to 2-D
    (1024, 2304)
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from e2gan_cluster.errors import IntegrityError
from e2gan_cluster.export.names import TEXT, lora_a, lora_b

_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.(?:default\.)?weight")


@dataclass(frozen=True)
class Factors:
    """The two LoRA matrices of one layer (Hu et al. 2021, section 4.1), scaling included.

    Attributes:
        a_RI: ``[rank, inputs]`` float32; inputs of a convolution are channels x height x width of its kernel.
        b_OR: ``[outputs, rank]`` float32, multiplied by alpha / rank.
    """

    a_RI: np.ndarray
    b_OR: np.ndarray

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return self.a_RI.shape[0]

    def delta(self) -> np.ndarray:
        """Update of the layer's weight, ``[outputs, inputs]``."""
        return self.b_OR @ self.a_RI


def read_factors(files: Mapping[str, bytes]) -> dict[str, Factors]:
    """Reads ``adapter_model.safetensors`` and ``adapter_config.json`` of a PEFT LoRA adapter.

    Args:
        files: File contents by name.

    Returns:
        Factors by layer name, as in the generator's ``named_modules``.

    Raises:
        IntegrityError: A file is missing or unreadable, a tensor is not a LoRA factor, is not finite, has no
            partner, or its rank is not the one in the config.
    """
    try:
        tensors = load(files["adapter_model.safetensors"])
        config = json.loads(files["adapter_config.json"])
    except (KeyError, SafetensorError, ValueError) as error:
        raise IntegrityError(
            f"adapter cannot be read: {error}",
            "give adapter_model.safetensors and adapter_config.json of one PEFT folder",
        ) from error
    sides: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise IntegrityError(
                f"adapter tensor {name} is not a LoRA factor", "only LoRA without biases can be exported"
            )
        if not np.isfinite(tensor).all():
            raise IntegrityError(f"adapter tensor {name} holds NaN or infinity", "train the adapter again")
        sides.setdefault(match["layer"], {})[match["side"]] = tensor.astype(np.float32)
    return {layer: _factors(layer, pair, config) for layer, pair in sorted(sides.items())}


def _factors(layer: str, pair: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Factors:
    if set(pair) != {"A", "B"}:
        raise IntegrityError(
            f"adapter layer {layer} has only factor {', '.join(pair)}", "the file is cut; pull it again"
        )
    a_RI = pair["A"].reshape(pair["A"].shape[0], -1)
    b_OR = pair["B"].reshape(pair["B"].shape[0], -1)
    rank = _pattern(config.get("rank_pattern"), layer, config["r"])
    if not a_RI.shape[0] == b_OR.shape[1] == rank:
        raise IntegrityError(
            f"adapter layer {layer}: factors of rank {a_RI.shape[0]} and {b_OR.shape[1]}, its config says {rank}",
            "model and config are of different adapters; pull or export them together",
        )
    alpha = _pattern(config.get("alpha_pattern"), layer, config["lora_alpha"])
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Factors(a_RI, b_OR * np.float32(scaling))


def _pattern(pattern: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    """PEFT's rule: a key is a regular expression that matches the layer's name or its dotted end."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", layer):
            return value
    return default


def effect_tensors(
    factors: Mapping[str, Factors], tokens_TD: np.ndarray, shapes: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, np.ndarray]:
    """The named tensors that turn the base graph into one effect.

    Args:
        factors: From `read_factors`.
        tokens_TD: Encoded prompt, float32; padding rows (all zero) at the end are dropped.
        shapes: ``(outputs, inputs)`` of every layer that has graph inputs; given, layers without factors get
            zeros of rank 1 (needed where all inputs are required).

    Returns:
        float32 tensors by graph input name.
    """
    real = np.flatnonzero(np.abs(tokens_TD).sum(-1) > 0)
    last = int(real[-1]) + 1 if len(real) else 1
    tensors = {TEXT: np.ascontiguousarray(tokens_TD[None, :last], dtype=np.float32)}
    if shapes is not None:
        for layer, (outputs, inputs) in shapes.items():
            tensors[lora_a(layer)] = np.zeros((1, inputs), np.float32)
            tensors[lora_b(layer)] = np.zeros((outputs, 1), np.float32)
    for layer, pair in factors.items():
        tensors[lora_a(layer)] = np.ascontiguousarray(pair.a_RI)
        tensors[lora_b(layer)] = np.ascontiguousarray(pair.b_OR)
    return tensors


def tensor_file(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file, the same bytes for the same content: the library writes metadata in random order.

    Args:
        tensors: Values by name.
        metadata: Facts for the header.
    """
    data = save(dict(tensors), dict(metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header = {"__metadata__": dict(sorted(header.pop("__metadata__", {}).items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    assert len(text) <= end - 8
    return data[:8] + text.ljust(end - 8) + data[end:]
