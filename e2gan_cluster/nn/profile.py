"""Counts parameters and multiply-accumulates (MACs).

Convention: one MAC is one multiplication with its addition; convolutions, linear layers and both products of attention
are counted, norms, activations, resizing and biases are not. A transposed convolution is counted at its output's
resolution, every kernel position at every output pixel, as the GAN Compression repository and the published 56.8 G
of pix2pix's ResNet-9 do; ``transposed_at="input"`` counts the multiplications really needed (49.6 G).

Example:
    >>> import torch
    >>> from e2gan_cluster.nn.baselines import ResNet9
    >>> round(profile(ResNet9(), torch.zeros(1, 3, 256, 256)).macs / 1e9, 1)
    56.8
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from e2gan_cluster.nn.blocks import Attend


@dataclass(frozen=True)
class PartProfile:
    """One direct submodule."""

    params: int
    macs: int


@dataclass(frozen=True)
class Profile:
    """Size and cost of one forward pass.

    Attributes:
        params: Parameters.
        macs: Multiply-accumulates.
        by_part: The same per direct submodule.
    """

    params: int
    macs: int
    by_part: Mapping[str, PartProfile]


@torch.no_grad()
def profile(module: nn.Module, *inputs: torch.Tensor, transposed_at: Literal["output", "input"] = "output") -> Profile:
    """Profiles one forward pass.

    Args:
        module: Any network.
        *inputs: What its ``forward`` takes; MACs are for this batch.
        transposed_at: Resolution at which transposed convolutions are counted.

    Returns:
        The counts. Weights used outside a counted layer are not in ``macs``.
    """
    counts: dict[str, int] = {}
    handles = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | Attend):
            part = name.split(".")[0]

            def count(layer: nn.Module, args: tuple[Any, ...], out: torch.Tensor, part: str = part) -> None:
                counts[part] = counts.get(part, 0) + _macs(layer, args, out, transposed_at)

            handles.append(layer.register_forward_hook(count))
    try:
        module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    parts = {name: PartProfile(_params(child), counts.get(name, 0)) for name, child in module.named_children()}
    return Profile(_params(module), sum(counts.values()), parts)


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _macs(layer: nn.Module, args: tuple[Any, ...], out: torch.Tensor, transposed_at: str) -> int:
    if isinstance(layer, nn.Linear):
        return out.numel() * layer.in_features
    if isinstance(layer, Attend):
        batch, heads, queries, dim = args[0].shape
        return 2 * batch * heads * queries * args[1].shape[2] * dim
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    kernel = layer.kernel_size[0] * layer.kernel_size[1]
    if isinstance(layer, nn.ConvTranspose2d) and transposed_at == "input":
        return args[0].numel() * layer.out_channels // layer.groups * kernel
    return out.numel() * layer.in_channels // layer.groups * kernel


@torch.no_grad()
def latency_s(module: nn.Module, *inputs: torch.Tensor, repeats: int = 5) -> float:
    """Median seconds of a forward pass in torch after one to warm up (phones: measure the export instead)."""
    module(*inputs)
    times: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        module(*inputs)
        if inputs[0].is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]
