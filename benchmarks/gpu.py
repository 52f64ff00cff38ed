"""What one GPU does: pairs/s of a full-size teacher, training images/s and share of the chip's peak, adapters at once.

Speeds only, on random weights and pictures. The peak is measured too: a large bf16 matrix product in the same run.

python -m benchmarks.gpu pairs
python -m benchmarks.gpu train --resolution 256 --width 64
python -m benchmarks.gpu adapters --resolution 128 --width 32
python -m benchmarks.gpu pairs train adapters --tiny --device cpu    (only shows that it runs)
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.adapters_at_once import compare_adapters
from e2gan_cluster.config import TeacherConfig, TrainConfig
from e2gan_cluster.nn.baselines import ResNet9
from e2gan_cluster.nn.discriminator import Discriminator
from e2gan_cluster.nn.generator import Generator
from e2gan_cluster.train.data import Batch
from e2gan_cluster.train.loop import create_state, train_step

STEPS = 20
"""Denoising steps of the full-size teacher."""


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("pairs", "train", "adapters"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--resolution", type=int, default=256, help="of training and adapters; the teacher's is 512")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement")
    parser.add_argument("--compile", action="store_true", help="also compiled; takes about a minute more")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try it out")
    options = parser.parse_args()
    if options.tiny:
        options.resolution, options.width, options.seconds = 64, 16, 0.2
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    peak = matmul_tflops(options)
    print(f"{name}, torch {torch.__version__}; bf16 matrix product: {peak:.0f} TFLOP/s", flush=True)
    for what in options.what:
        {"pairs": bench_pairs, "train": bench_train, "adapters": compare_adapters}[what](options, peak)


def matmul_tflops(options: argparse.Namespace) -> float:
    """Speed of a large bf16 matrix product on random numbers, TFLOP/s: the peak that shares refer to."""
    side = 256 if options.tiny else 8192
    a, b = (torch.randn(side, side, device=options.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds_per_call(lambda: a @ b, options.device, 0.5) / 1e12


def seconds_per_call(call: Callable[[], Any], device: str, least_s: float) -> float:
    """Median seconds of a call, the device's work included, after two calls that do not count."""
    times: list[float] = []
    end = time.perf_counter() + least_s
    for n in range(1000):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if n >= 2:
            times.append(time.perf_counter() - started)
        if len(times) >= 2 and time.perf_counter() > end:
            break
    return statistics.median(times)


def bench_pairs(options: argparse.Namespace, peak: float) -> None:
    """Pairs/s at 512 px: the stock pipeline photo by photo, then ours, one change at a time."""
    from benchmarks.full_size_teacher import save_full_size_teacher
    from e2gan_cluster.teacher.instruct import InstructTeacher
    from e2gan_cluster.teacher.runtime import LatentCache, prompt_cache

    side, count = (64, 2) if options.tiny else (512, 16)
    with tempfile.TemporaryDirectory() as folder:
        save_full_size_teacher(Path(folder), options.device, options.tiny)
        cfg = TeacherConfig(
            backend="instruct-pix2pix", model=folder, device=options.device, steps=STEPS, resolution=side,
            dtype="float16" if options.device == "cuda" else "float32",
        )  # fmt: skip
        teacher = InstructTeacher(cfg)
    photos_NHWC = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    unet = teacher.pipe.unet
    flops = 3 * STEPS * _unet_flops(unet, side, options.device)
    _layout(unet, torch.contiguous_format)
    base = seconds_per_call(lambda: _stock(teacher.pipe, photos_NHWC[0]), options.device, options.seconds)
    _print_pairs("stock call, photo by photo, fp16", base, base, flops, peak)

    def ours(label: str, batch_size: int) -> None:
        teacher._batches.size = batch_size
        photos = photos_NHWC[:batch_size]

        def edit() -> None:
            teacher.edit(photos, ["make it snow"] * len(photos), list(range(len(photos))))

        elapsed_s = seconds_per_call(edit, options.device, options.seconds) / len(photos)
        _print_pairs(label, elapsed_s, base, flops, peak)

    ours("ours, embeddings and latents kept, batch 1", 1)
    for batch_size in (4, count):
        ours(f"+ batch {batch_size}", min(batch_size, count))
    _layout(unet, torch.channels_last)
    ours("+ channels_last", count)
    teacher.pipe.to(dtype=torch.bfloat16)
    teacher._latents, teacher._prompts = LatentCache(), prompt_cache()
    ours("+ bf16 instead of fp16", count)
    if options.compile:
        unet.compile_repeated_blocks()
        ours("+ compiled transformer blocks", count)


def _stock(pipe: Any, photo_HWC: np.ndarray) -> None:
    generator = torch.Generator("cpu").manual_seed(0)
    pipe(
        prompt="make it snow", image=Image.fromarray(photo_HWC), num_inference_steps=STEPS, guidance_scale=7.5,
        image_guidance_scale=1.5, generator=generator,
    )  # fmt: skip


def _layout(module: torch.nn.Module, memory_format: torch.memory_format) -> None:
    module.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]


@torch.inference_mode()
def _unet_flops(unet: Any, side: int, device: str) -> int:
    z = torch.randn(1, 8, side // 8, side // 8, device=device, dtype=unet.dtype)
    tokens = torch.randn(1, 77, unet.config.cross_attention_dim, device=device, dtype=unet.dtype)
    with FlopCounterMode(display=False) as counter:
        unet(z, 500, tokens)
    return counter.get_total_flops()


def _print_pairs(label: str, elapsed_s: float, base_s: float, flops: int, peak: float) -> None:
    share = flops / elapsed_s / 1e12 / peak
    print(f"{label:<44}{1 / elapsed_s:8.2f} pairs/s{base_s / elapsed_s:7.2f} x stock{share:7.0%} of peak", flush=True)


def bench_train(options: argparse.Namespace, peak: float) -> None:
    """Training images/s: ours and pix2pix's ResNet-9 with the same discriminator, over batch sizes and options."""
    nets = {"ours": Generator(options.width), "resnet9": ResNet9(options.width)}
    plain: dict[str, Any] = {"amp": "float32"}
    fast: dict[str, Any] = {"amp": "bfloat16", "channels_last": True}
    cases = [("fp32", plain, 1), ("fp32", plain, 16), ("bf16", {"amp": "bfloat16"}, 16)]
    cases += [("bf16 channels_last", fast, size) for size in (1, 4, 16, 64)]
    if options.compile:
        cases += [("bf16 channels_last compiled", {**fast, "compile": True}, size) for size in (4, 16)]
    if options.tiny:
        cases = cases[:1]
    for name, generator in nets.items():
        for label, settings, batch_size in cases:
            images_per_s, flops = measure_training(generator, options, settings, batch_size)
            share = flops * images_per_s / 1e12 / peak
            print(
                f"{name:<9}{label:<29}batch {batch_size:>3}{images_per_s:9.1f} images/s{share:7.1%} of peak", flush=True
            )


def measure_training(
    generator: torch.nn.Module, options: argparse.Namespace, settings: dict[str, Any], batch_size: int
) -> tuple[float, float]:
    """Training images/s, and floating-point operations of one image's step."""
    generator = copy.deepcopy(generator).to(options.device)
    discriminator = Discriminator(options.width).to(options.device)
    cfg = TrainConfig.model_validate({"images": 10**9, "batch_size": batch_size, **settings})
    state = create_state(generator, discriminator, cfg)
    batch = random_batch(batch_size, options.resolution, options.device)
    flops = _step_flops(generator, discriminator, batch) / batch_size
    elapsed_s = seconds_per_call(lambda: train_step(state, batch, cfg), options.device, options.seconds)
    return batch_size / elapsed_s, flops


@torch.no_grad()
def _step_flops(generator: torch.nn.Module, discriminator: torch.nn.Module, batch: Batch) -> int:
    """Of one training step: three forward passes' worth for the generator, seven for the discriminator.

    The discriminator sees real and fake (2 forward, 4 backward); its gradient also goes to the fake (1).
    """
    passes = []
    for call in (
        lambda: generator(batch.source_BCHW, batch.text_BTD),
        lambda: discriminator(batch.source_BCHW, batch.target_BCHW, batch.pooled_BD),
    ):
        with FlopCounterMode(display=False) as counter:
            call()
        passes.append(counter.get_total_flops())
    return 3 * passes[0] + 7 * passes[1]


def random_batch(size: int, resolution: int, device: str) -> Batch:
    """A batch of noise on the device."""
    images = [torch.rand(size, 3, resolution, resolution, device=device) * 2 - 1 for _ in range(2)]
    text = torch.randn(size, 24, 384, device=device)
    return Batch(
        images[0], images[1], text, torch.nn.functional.normalize(text.mean(1), dim=-1), ("x",) * size, None, size
    )


if __name__ == "__main__":
    main()
