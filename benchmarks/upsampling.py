"""The three up-samplings of the generator: ONNX Runtime latency, and held-out L1 after the same training.

python -m benchmarks.upsampling --quick
python -m benchmarks.upsampling --width 64 --latency-resolution 256 --images 4000
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from benchmarks.reference_edits import EDITS, reference_pairs
from e2gan_cluster.config import TrainConfig
from e2gan_cluster.evaluate.inference import run_generator
from e2gan_cluster.nn.blocks import UpsampleKind
from e2gan_cluster.nn.discriminator import Discriminator
from e2gan_cluster.nn.generator import Generator
from e2gan_cluster.text.encoder import PromptEncoder
from e2gan_cluster.train.data import pair_data
from e2gan_cluster.train.loop import create_state, train

KINDS: tuple[UpsampleKind, ...] = ("nearest", "bilinear", "shuffle")


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="width 16, 200 images: only shows that it runs")
    parser.add_argument("--width", type=int, default=64, help="of the generator whose latency is measured")
    parser.add_argument("--latency-resolution", type=int, default=256)
    parser.add_argument("--train-width", type=int, default=24)
    parser.add_argument("--resolution", type=int, default=64, help="of the training")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--photos", default="bundled")
    options = parser.parse_args()
    if options.quick:
        options.width, options.latency_resolution, options.train_width, options.images = 16, 128, 8, 200
    torch.set_num_threads(1)
    latencies = latency_s(options.width, options.latency_resolution)
    quality = held_out_l1(options)
    print(f"width {options.width} at {options.latency_resolution} px; trained at width {options.train_width},")
    print(f"{options.resolution} px, {options.images} images of {len(EDITS) // 2} edits")
    for kind in KINDS:
        ratio = latencies["nearest"] / latencies[kind]
        print(f"{kind:<10}{1e3 * latencies[kind]:8.1f} ms  {ratio:5.2f} x nearest   L1 {quality[kind]:.4f}")


def latency_s(width: int, resolution: int, repeats: int = 7) -> dict[str, float]:
    """Median seconds of a forward pass in ONNX Runtime, one thread, interleaved."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    x = torch.randn(1, 3, resolution, resolution)
    text = torch.randn(1, 24, 384)
    sessions = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = Path(folder) / f"{kind}.onnx"
            program = torch.onnx.export(
                Generator(width, upsample=kind).eval(), (x, text), dynamo=True, input_names=["x", "text"], verbose=False
            )
            assert program is not None
            program.save(path)
            sessions[kind] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feeds = {"x": x.numpy(), "text": text.numpy()}
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for session in sessions.values():
            session.run(None, feeds)
        for _ in range(repeats):
            for kind, session in sessions.items():
                started = time.perf_counter()
                session.run(None, feeds)
                times[kind].append(time.perf_counter() - started)
    return {kind: statistics.median(values) for kind, values in times.items()}


def held_out_l1(options: argparse.Namespace) -> dict[str, float]:
    """Mean absolute difference to the reference edits of held-out photos, values in [0, 1]."""
    sets = reference_pairs(list(EDITS)[::2], options.resolution, 2, options.photos)
    encoder = PromptEncoder()
    data = pair_data([pairs for pairs, _ in sets.values()], encoder)
    cfg = TrainConfig(images=options.images, lr=1e-3)
    result = {}
    for kind in KINDS:
        torch.manual_seed(0)
        state = create_state(Generator(options.train_width, upsample=kind), Discriminator(options.train_width), cfg)
        train(state, data, cfg, seed=0)
        with state.averaged() as generator:
            errors = [
                np.abs(
                    run_generator(generator, held.inputs_NHWC, encoder.encode([held.prompt]).tokens_BTD[0]).astype(int)
                    - held.edits_NHWC
                ).mean()
                for _, held in sets.values()
            ]
        result[kind] = float(np.mean(errors)) / 255
    return result


if __name__ == "__main__":
    main()
