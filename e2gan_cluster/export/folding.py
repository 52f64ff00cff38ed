"""Generators whose LoRA factors are arguments, and generators with one adapter merged in; torch only.

The factors are multiplied inside the graph and added to the weight (``W + B A``), so an adapted layer costs one small
matrix product and not a second convolution over the image: 1.03 times the merged network where LoRA branches cost
1.11 (docs/mobile.md).
"""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from e2gan_cluster.errors import BaseMismatchError, InputError
from e2gan_cluster.export.factors import Factors
from e2gan_cluster.export.names import lora_a, lora_b


class FoldedLayer(nn.Module):
    """A Conv2d or Linear that computes with ``W + B A``.

    Args:
        layer: The layer of the frozen base.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        outputs, inputs = matrix_shape(layer)
        self.lora_A = nn.Parameter(torch.zeros(1, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the adapted layer."""
        layer = self.layer
        weight = layer.weight + (self.lora_B @ self.lora_A).view(layer.weight.shape)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias)
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


class EffectInputs(nn.Module):
    """A generator that takes its effect as arguments: ``(image, text, [A, B, A, B, ...])``.

    Args:
        generator: The frozen base; copied.
        layers: Adaptable layers, by name, in the order of the list argument.
    """

    def __init__(self, generator: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.generator = plain_copy(generator)
        self.names: list[str] = []
        for name in layers:
            parent, _, leaf = name.rpartition(".")
            self.generator.get_submodule(parent).register_module(leaf, FoldedLayer(adaptable(self.generator, name)))
            self.names += [lora_a(name), lora_b(name)]

    def forward(self, image: torch.Tensor, text: torch.Tensor, lora: list[torch.Tensor]) -> torch.Tensor:
        """Edits ``image`` with the effect (text, factors)."""
        return functional_call(self.generator, dict(zip(self.names, lora, strict=True)), (image, text))


class OneEffect(nn.Module):
    """A generator with one adapter merged and one prompt built in: ``image -> edited``.

    Args:
        generator: From `merge`.
        text_BTD: Encoded prompt, ``[1, tokens, D]``.
    """

    text_BTD: torch.Tensor

    def __init__(self, generator: nn.Module, text_BTD: np.ndarray) -> None:
        super().__init__()
        self.generator = generator
        self.register_buffer("text_BTD", torch.from_numpy(text_BTD))
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Edits ``image``."""
        return self.generator(image, self.text_BTD)


class HalfPrecision(nn.Module):
    """A `OneEffect` with float16 weights and arithmetic between a float32 image and a float32 result.

    Args:
        effect: Copied.
    """

    def __init__(self, effect: OneEffect) -> None:
        super().__init__()
        self.effect = copy.deepcopy(effect).half()
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Edits ``image``."""
        return self.effect(image.half()).float()


def plain_copy(generator: nn.Module) -> nn.Module:
    """A float32 copy on the CPU in inference mode."""
    return copy.deepcopy(generator).cpu().float().eval().requires_grad_(False)


def adaptable(generator: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    """The layer called ``name``.

    Raises:
        BaseMismatchError: There is none, or LoRA cannot sit on it.
    """
    try:
        layer = generator.get_submodule(name)
    except AttributeError:
        layer = None
    if isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    ):
        return layer
    raise BaseMismatchError(
        f"the base has no adaptable layer {name}", "use the adapter with the base it was trained on"
    )


def adaptable_layers(generator: nn.Module) -> list[str]:
    """Names of all layers that can carry LoRA."""
    return [
        name
        for name, layer in generator.named_modules()
        if isinstance(layer, nn.Linear)
        or (isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros")
    ]


def matrix_shape(layer: nn.Conv2d | nn.Linear) -> tuple[int, int]:
    """``(outputs, inputs)`` of a layer's weight, kernel positions counted as inputs."""
    outputs = layer.weight.shape[0]
    return outputs, layer.weight.numel() // outputs


def merge(generator: nn.Module, factors: Mapping[str, Factors]) -> nn.Module:
    """A copy of the generator with an adapter added to its weights.

    Args:
        generator: The base.
        factors: From `read_factors`.

    Returns:
        The merged generator: float32, CPU, inference mode.

    Raises:
        BaseMismatchError: The adapter has a layer that the base lacks, or one of another shape.
    """
    merged = plain_copy(generator)
    for name, pair in factors.items():
        layer = adaptable(merged, name)
        delta = pair.delta()
        if delta.shape != matrix_shape(layer):
            raise BaseMismatchError(
                f"layer {name}: the adapter is for a weight of {delta.shape}, the base has {matrix_shape(layer)}",
                "use the adapter with the base it was trained on",
            )
        layer.weight += torch.from_numpy(delta).view(layer.weight.shape)
    return merged


def check_size(resolution: int | None) -> None:
    """Refuses a fixed side that the network cannot take.

    Raises:
        InputError: Not a multiple of 16.
    """
    if resolution is not None and (resolution <= 0 or resolution % 16):
        raise InputError(
            f"export resolution {resolution} is not a multiple of 16", "set publish.resolution to one, or to null"
        )
