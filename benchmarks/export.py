"""Latency, size and parity of every exported variant beside pix2pix's generators, in ONNX Runtime on this CPU.

All variants run in turn, so that a busy machine slows them alike; ratios are medians of ratios within a round.

Example:
    .venv/bin/python benchmarks/export.py --rounds 7 --threads 1 2
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from e2gan_cluster.export import names
from e2gan_cluster.export.adapter_export import ExportResult, export_adapter
from e2gan_cluster.export.base_export import BaseExport, export_base
from e2gan_cluster.export.graph import image_axes, image_example, save_graph, to_onnx
from e2gan_cluster.export.runtime import AdapterEffect, Graph
from e2gan_cluster.nn.baselines import ResNet9, UNet256
from e2gan_cluster.nn.generator import Generator
from e2gan_cluster.nn.lora import adaptable_layers, add_lora, save_adapter

BASE_ID = "0123456789ab"
PARTS = ("downsample", "ds", "transformer", "us", "upsample")
FORMATS: tuple[names.Format, ...] = (
    "onnx-adapter", "onnx-adapter-fp16", "required-inputs", "merged", "merged-fp16", "merged-int8", "ort",
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A base with random weights: latency does not depend on them."""

    generator: nn.Module
    base_id: str = BASE_ID


def main() -> None:
    """Measures and prints tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=256, help="side of the image, pixels")
    parser.add_argument("--rank", type=int, default=1, help="rank of every adapted layer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--all-layers", action="store_true", help="LoRA inputs on every layer of the base")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = make_base(options.width)
        photo_NHWC = smooth_photos(4, options.size)
        layers = None if options.all_layers else adaptable_layers(base.generator, PARTS)
        start = time.perf_counter()
        base_export = export_base(base, layers, work / "base")
        print(f"export of the base: {time.perf_counter() - start:.1f} s; {len(base_export.layers)} layers with inputs")
        exports = [adapter(base, base_export, work / str(n), options.rank, n, photo_NHWC) for n in (1, 2)]
        baselines = export_baselines(work, options.width, options.size)
        print_sizes(base_export, exports[0], baselines)
        for threads in options.threads:
            print_latency(base_export, exports, baselines, options.size, options.rounds, threads)
        print(f"mobile usability (ONNX Runtime's check): {base_export.usability}")


def make_base(width: int) -> Base:
    """Generator whose zero layers got small random weights."""
    torch.manual_seed(0)
    generator = Generator(width=width).eval()
    for parameter in generator.parameters():
        if not parameter.abs().max():
            nn.init.normal_(parameter, std=0.02)
    return Base(generator)


def smooth_photos(count: int, size: int) -> np.ndarray:
    """Coarse random colours, enlarged smoothly; uint8."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return smooth.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def adapter(
    base: Base, base_export: BaseExport, folder: Path, rank: int, seed: int, photos: np.ndarray
) -> ExportResult:
    """All formats of a random adapter, with parity."""
    layers = adaptable_layers(base.generator, PARTS)
    model = add_lora(copy.deepcopy(base.generator), dict.fromkeys(layers, rank), seed=seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02, generator=torch.Generator().manual_seed(seed))
    tokens_TD = np.random.default_rng(seed).standard_normal((10, 384)).astype(np.float32)
    start = time.perf_counter()
    formats = FORMATS if seed == 1 else FORMATS[:1]
    result = export_adapter(base, base_export, save_adapter(model, BASE_ID), tokens_TD, formats, folder, photos)
    print(f"export of adapter {seed}, {len(formats)} formats with parity: {time.perf_counter() - start:.1f} s")
    (folder / "peft.safetensors").write_bytes(save_adapter(model, BASE_ID)["adapter_model.safetensors"])
    return result


def export_baselines(folder: Path, width: int, size: int) -> dict[str, Path]:
    """pix2pix's generators as ONNX."""
    paths = {}
    levels = size.bit_length() - 1
    for name, module in {"ResNet-9": ResNet9(width), f"U-Net-{size}": UNet256(width, levels)}.items():
        resolution = None if name == "ResNet-9" else size
        model = to_onnx(module.eval(), (image_example(resolution),), (image_axes(resolution),), [names.IMAGE])
        paths[name] = save_graph(model, folder / f"{name}.onnx", {names.META_BASE: "", names.META_FORMAT: "1"})
    return paths


def print_sizes(base_export: BaseExport, export: ExportResult, baselines: dict[str, Path]) -> None:
    """Bytes and parity of each file."""
    print(f"\n{'file':28} {'MB':>8} {'max error':>10} {'mean':>9} {'PSNR dB':>8} {'LPIPS':>7}")
    peft = next(iter(export.files.values())).parent / "peft.safetensors"
    for path in (*base_export.files.values(), *export.files.values(), peft, *baselines.values()):
        parity = export.parity.get(path.name)
        told = f"{parity.max_error:10.1e} {parity.mean_error:9.1e} {parity.psnr_db:8.1f}" if parity else ""
        lpips = f" {parity.lpips:7.4f}" if parity and parity.lpips is not None else ""
        print(f"{path.name:28} {path.stat().st_size / 1e6:8.3f} {told}{lpips}")
    for name, reason in export.skipped.items():
        print(f"{name} left out: {reason}")


def print_latency(
    base_export: BaseExport,
    exports: list[ExportResult],
    baselines: dict[str, Path],
    size: int,
    rounds: int,
    threads: int,
) -> None:
    """Medians and ratios of all variants, interleaved; switching time."""
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, size, size)).astype(np.float32)
    files = exports[0].files
    graph = Graph.load(base_export.files[names.BASE_ONNX], threads)
    own = AdapterEffect(graph, files["adapter.onnx_adapter"])
    half = AdapterEffect(
        Graph.load(base_export.files[names.BASE_FP16_ONNX], threads), files["adapter-fp16.onnx_adapter"]
    )
    runs: dict[str, Callable[[], object]] = {
        "base + adapter": lambda: own.run(image),
        "the same, fp16 files": lambda: half.run(image),
    }
    paths = {name.removesuffix(".onnx"): path for name, path in files.items() if name.startswith("merged")} | baselines
    for name, path in paths.items():
        session = session_of(path, threads)
        runs[name] = lambda s=session: s.run(None, {names.IMAGE: image})
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_:
                times[name].append(1e3 * (time.perf_counter() - start))
    print(f"\n{threads} thread(s), {size} px, {rounds} rounds")
    print(f"{'variant':20} {'ms':>8} {'to merged':>10} {'ResNet-9 is':>12}")
    for name, row in times.items():
        to_merged = statistics.median(a / b for a, b in zip(row, times["merged"], strict=True))
        speedup = statistics.median(b / a for a, b in zip(row, times["ResNet-9"], strict=True))
        print(f"{name:20} {statistics.median(row):8.1f} {to_merged:9.2f}x {speedup:11.2f}x")
    switches = []
    for n in range(20):
        start = time.perf_counter()
        AdapterEffect(graph, exports[n % 2].files["adapter.onnx_adapter"])
        switches.append(1e3 * (time.perf_counter() - start))
    print(f"switching the effect, from file: median {statistics.median(switches):.1f} ms, worst {max(switches):.1f} ms")


def session_of(path: Path, threads: int) -> ort.InferenceSession:
    """ONNX Runtime on the CPU."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
