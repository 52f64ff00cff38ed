"""K adapters of one frozen base trained at once on one device: in K processes, or side by side in one process.

Side by side, the base's convolutions see the photos of all adapters as one batch and every adapter's own LoRA weights
run as grouped convolutions (`torch.func.vmap`). The loss is L1 alone in all variants. Run by ``benchmarks.gpu``.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from e2gan_cluster.config import TrainConfig
from e2gan_cluster.nn.generator import PARTS, Generator
from e2gan_cluster.nn.lora import adaptable_layers, add_lora, cap_ranks, lora_parameters
from e2gan_cluster.train.data import Batch
from e2gan_cluster.train.loop import create_state, train_step

RANK, BATCH, RATE = 4, 8, 1e-3
PROCESSES, SIDE_BY_SIDE = (1, 2, 4, 8, 16), (1, 4, 16, 64)


def compare_adapters(options: argparse.Namespace, peak: float) -> None:
    """Prints images/s over all adapters, against one adapter alone."""
    del peak
    counts, at_once = (PROCESSES, SIDE_BY_SIDE) if not options.tiny else ((1, 2), (1, 2))
    base = 0.0
    for count in counts:
        images_per_s = in_processes(options, count)
        base = base or images_per_s
        print(
            f"{count:>3} processes of one adapter {images_per_s:10.1f} images/s{images_per_s / base:7.2f} x one",
            flush=True,
        )
    for count in at_once:
        try:
            step = side_by_side_step(adapter(options), options, count)
            images_per_s = count * BATCH / _seconds(step, options)
        except torch.OutOfMemoryError:
            print(f"{count:>3} adapters side by side: out of memory", flush=True)
            continue
        print(
            f"{count:>3} adapters side by side {images_per_s:12.1f} images/s{images_per_s / base:7.2f} x one",
            flush=True,
        )


def adapter(options: argparse.Namespace, seed: int = 0) -> nn.Module:
    """A generator with LoRA of one rank on every layer that can have it."""
    torch.manual_seed(0)
    generator = Generator(options.width)
    ranks = cap_ranks(generator, dict.fromkeys(adaptable_layers(generator, PARTS), RANK))
    return add_lora(generator, ranks, seed=seed).to(options.device)


def random_pairs(options: argparse.Namespace, seed: int = 0) -> Batch:
    """One adapter's batch of noise."""
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, 3, options.resolution, options.resolution)
    images = [(torch.rand(shape, generator=generator) * 2 - 1).to(options.device) for _ in range(2)]
    text = torch.randn(1, 24, 384, generator=generator).expand(BATCH, -1, -1).to(options.device)
    pooled = nn.functional.normalize(text.mean(1), dim=-1)
    return Batch(images[0], images[1], text, pooled, ("x",) * BATCH, None, BATCH)


def solo_step(options: argparse.Namespace) -> Callable[[], object]:
    """The product's own training step of one adapter."""
    cfg = TrainConfig.model_validate({"images": 10**9, "batch_size": BATCH, "lr": RATE, "loss": {"gan_weight": 0}})
    state, batch = create_state(adapter(options), None, cfg), random_pairs(options)
    return lambda: train_step(state, batch, cfg)


def in_processes(options: argparse.Namespace, count: int) -> float:
    """Images/s of ``count`` processes together, all started before any is timed."""
    context = mp.get_context("spawn")
    ready, results = context.Barrier(count), context.Queue()
    processes = [context.Process(target=_worker, args=(options, ready, results)) for _ in range(count)]
    for process in processes:
        process.start()
    total = sum(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    return total


def _worker(options: argparse.Namespace, ready: Any, results: Any) -> None:
    torch.set_num_threads(1)
    step = solo_step(options)
    for _ in range(3):
        step()
    ready.wait()
    results.put(BATCH / _seconds(step, options))


def _seconds(step: Callable[[], object], options: argparse.Namespace) -> float:
    """Mean seconds of a step over the measuring time, the device's work included."""

    def wait() -> None:
        if options.device == "cuda":
            torch.cuda.synchronize()

    step()
    wait()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < options.seconds or steps < 2:
        step()
        wait()
        steps += 1
    return (time.perf_counter() - started) / steps


def side_by_side_gradients(
    model: nn.Module, weights: Mapping[str, torch.Tensor], batches: Batch, count: int
) -> dict[str, torch.Tensor]:
    """Gradients of every adapter's own L1 loss.

    Args:
        model: Frozen generator with LoRA.
        weights: LoRA tensors, stacked: [K, ...].
        batches: The adapters' batches, one after the other: [K * B, ...].
        count: K.
    """

    def loss(lora: dict[str, torch.Tensor], source: torch.Tensor, target: torch.Tensor, text: torch.Tensor) -> Any:
        # The fused attention kernels cannot be batched over adapters.
        plain_attention = sdpa_kernel(SDPBackend.MATH)
        with plain_attention, torch.autocast(source.device.type, torch.bfloat16, enabled=source.is_cuda):
            output = functional_call(model, lora, (source, text))
        return (output.float() - target).abs().mean()

    parts = [t.unflatten(0, (count, -1)) for t in (batches.source_BCHW, batches.target_BCHW, batches.text_BTD)]
    return vmap(grad(loss), randomness="same")(dict(weights), *parts)


def side_by_side_step(model: nn.Module, options: argparse.Namespace, count: int) -> Callable[[], None]:
    """One Adam step of all adapters."""
    weights = {n: p.detach().expand(count, *p.shape).clone() for n, p in lora_parameters(model)}
    optimizer = torch.optim.Adam(list(weights.values()), lr=RATE, betas=(0.5, 0.999), fused=True)
    parts = [random_pairs(options, seed) for seed in range(count)]
    source_BCHW, target_BCHW, text_BTD, pooled_BD = (
        torch.cat(tensors)
        for tensors in zip(*((p.source_BCHW, p.target_BCHW, p.text_BTD, p.pooled_BD) for p in parts), strict=True)
    )
    names = parts[0].concepts * count
    joined = Batch(source_BCHW, target_BCHW, text_BTD, pooled_BD, names, None, BATCH * count)

    def step() -> None:
        for name, gradient in side_by_side_gradients(model, weights, joined, count).items():
            weights[name].grad = gradient
        optimizer.step()

    return step
