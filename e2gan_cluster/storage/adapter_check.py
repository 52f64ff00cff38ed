"""Is a folder a usable LoRA adapter of this base? Ranks, shapes, finite numbers; no torch.

Example:
    adapter = check_adapter(files)            # {"adapter_model.safetensors": b..., "adapter_config.json": b...}
    adapter.base_id, adapter.ranks
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from e2gan_cluster.errors import BaseMismatchError, IntegrityError
from e2gan_cluster.storage.safetensors_check import TensorInfo, check_finite, read_header

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PROMPT = "prompt.safetensors"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_MAX_CONFIG_BYTES = 1 << 20
_FIX = "publish the folder that training wrote, unchanged"


@dataclass(frozen=True)
class Adapter:
    """What an adapter folder says about itself.

    Attributes:
        base_id: Base it belongs to.
        ranks: Adapted layer -> rank.
        shapes: Adapted layer -> shapes of A and B.
    """

    base_id: str
    ranks: Mapping[str, int]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


def check_adapter(files: Mapping[str, bytes], what: str = "adapter") -> Adapter:
    """Check weights against config.

    Args:
        files: File name -> content; at least weights and config. A prompt file is checked if there.
        what: Whose files, for messages.

    Raises:
        IntegrityError: Missing, extra or malformed tensors, ranks unlike the config's, NaN or infinity, a pickle.
    """
    for name in (WEIGHTS, CONFIG):
        if name not in files:
            raise IntegrityError(f"{what} has no {name}", _FIX)
    config = _read_config(files[CONFIG], f"{what}/{CONFIG}")
    tensors = read_header(files[WEIGHTS], f"{what}/{WEIGHTS}")
    shapes = _layers(tensors, f"{what}/{WEIGHTS}")
    ranks = {layer: _rank(config, layer) for layer in shapes}
    _check_layers(config, shapes, ranks, what)
    check_finite(files[WEIGHTS], tensors, f"{what}/{WEIGHTS}")
    if PROMPT in files:
        _check_prompt(files[PROMPT], f"{what}/{PROMPT}")
    return Adapter(str(config["base_model_name_or_path"]), ranks, shapes)


def check_base_match(what: str, found: str, expected: str) -> None:
    """Compare base ids.

    Raises:
        BaseMismatchError: They differ; names both.
    """
    if found != expected:
        raise BaseMismatchError(
            f"{what} belongs to base {found}, but the base here is {expected}",
            f"use adapters of base {expected}; to change the base on purpose, use --base {found} with a new folder",
        )


def check_against_base(adapter: Adapter, base: Mapping[str, TensorInfo], what: str) -> None:
    """Compare an adapter's shapes with the base generator's header.

    Raises:
        BaseMismatchError: A layer that the base lacks or that has another shape there.
    """
    for layer, (shape_a, shape_b) in adapter.shapes.items():
        weight = base.get(f"{layer}.weight")
        if weight is None:
            raise BaseMismatchError(f"{what}: the base has no layer {layer!r}", _FIX)
        out, *rest = weight.shape
        if list(shape_a[1:]) != rest or shape_b[0] != out:
            raise BaseMismatchError(
                f"{what}: layer {layer!r} is {list(weight.shape)} in the base, "
                f"but its LoRA is {list(shape_a)}, {list(shape_b)}",
                _FIX,
            )


def _read_config(data: bytes, what: str) -> dict[str, Any]:
    try:
        if len(data) > _MAX_CONFIG_BYTES:
            raise ValueError(f"{len(data)} bytes")
        config = json.loads(data)
        targets, pattern = config["target_modules"], config.get("rank_pattern") or {}
        well_formed = (
            isinstance(config.get("base_model_name_or_path"), str)
            and isinstance(targets, list)
            and all(isinstance(target, str) for target in targets)
            and isinstance(pattern, dict)
            and all(type(rank) is int and rank > 0 for rank in [config["r"], *pattern.values()])
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{what} is not a PEFT config: {str(error)[:100]}", _FIX) from None
    if not well_formed or config.get("peft_type", "LORA") != "LORA":
        raise IntegrityError(f"{what} is not a LoRA config with base, layers and ranks", _FIX)
    return config


def _names_layer(pattern: str, layer: str) -> bool:
    """PEFT's meaning of a plain name: the layer itself or the end of its path."""
    return layer == pattern or layer.endswith("." + pattern)


def _rank(config: Mapping[str, Any], layer: str) -> int:
    pattern: Mapping[str, int] = config.get("rank_pattern") or {}
    return next((rank for name, rank in pattern.items() if _names_layer(name, layer)), config["r"])


def _layers(tensors: Mapping[str, TensorInfo], what: str) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Layer -> shapes of A and B."""
    halves: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        half = next((half for half in (_A, _B) if name.startswith(_PREFIX) and name.endswith(half)), None)
        if half is None or tensor.dtype not in ("F32", "F16", "BF16"):
            raise IntegrityError(f"{what}: {name[:100]!r} is not a tensor of a LoRA adapter", _FIX)
        halves.setdefault(name.removeprefix(_PREFIX).removesuffix(half), {})[half] = tensor.shape
    for layer, found in halves.items():
        if len(found) != 2:
            raise IntegrityError(f"{what}: layer {layer!r} has only one of lora_A and lora_B", _FIX)
    if not halves:
        raise IntegrityError(f"{what} holds no LoRA tensors", _FIX)
    return {layer: (found[_A], found[_B]) for layer, found in halves.items()}


def _check_layers(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    ranks: Mapping[str, int],
    what: str,
) -> None:
    named = [*config["target_modules"], *(config.get("rank_pattern") or {})]
    for name in named:
        if not any(_names_layer(name, layer) for layer in shapes):
            raise IntegrityError(f"{what}: {CONFIG} adapts {name!r}, but {WEIGHTS} has no tensors for it", _FIX)
    for layer, (shape_a, shape_b) in shapes.items():
        if not any(_names_layer(name, layer) for name in config["target_modules"]):
            raise IntegrityError(f"{what}: {WEIGHTS} has tensors for {layer!r}, which {CONFIG} does not adapt", _FIX)
        if len(shape_a) not in (2, 4) or len(shape_b) != len(shape_a) or any(n != 1 for n in shape_b[2:]):
            raise IntegrityError(f"{what}: layer {layer!r} has LoRA shapes {list(shape_a)} and {list(shape_b)}", _FIX)
        if shape_a[0] != ranks[layer] or shape_b[1] != ranks[layer]:
            raise IntegrityError(
                f"{what}: layer {layer!r} has rank {shape_a[0]} in {WEIGHTS}, but {ranks[layer]} in {CONFIG}", _FIX
            )


def _check_prompt(data: bytes, what: str) -> None:
    tensors = read_header(data, what)
    tokens, pooled = tensors.get("tokens"), tensors.get("pooled")
    if tokens is None or pooled is None or len(tokens.shape) != 2 or pooled.shape != tokens.shape[1:]:
        raise IntegrityError(f"{what} needs `tokens` [T, D] and `pooled` [D]", _FIX)
    check_finite(data, tensors, what)
