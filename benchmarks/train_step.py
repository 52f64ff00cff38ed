"""Images/s of one training step: a plain implementation against ours and its options, as ratios.

Plain: fp32, NCHW, two forward passes of the generator (one for each network's update), unfused Adam, gradients of the
discriminator's weights computed and thrown away in the generator's update, moving average in a Python loop every step.

python -m benchmarks.train_step --quick
python -m benchmarks.train_step --resolution 128 --width 32 --batch-size 8
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch

from e2gan_cluster.config import TrainConfig
from e2gan_cluster.nn.discriminator import Discriminator
from e2gan_cluster.nn.generator import Generator
from e2gan_cluster.nn.losses import discriminator_loss, generator_loss, l1_loss
from e2gan_cluster.train.data import Batch
from e2gan_cluster.train.loop import create_state, train_step

VARIANTS: dict[str, dict[str, object]] = {
    "ours": {},
    "bfloat16": {"amp": "bfloat16"},
    "channels_last": {"channels_last": True},
    "bfloat16 + channels_last": {"amp": "bfloat16", "channels_last": True},
    "compile": {"compile": True},
    "D every 2nd step": {"disc_interval": 2},
    "no EMA": {"ema_images": 0},
    "no GAN": {"loss": {"gan_weight": 0.0}},
}


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 px, width 24, 3 repetitions")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.quick:
        options.resolution, options.width, options.repeats = 64, 24, 3
        options.only = options.only or [name for name in VARIANTS if name != "compile"]
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    nets = _nets(options.width, device)
    batch = _batch(options.batch_size, options.resolution, device)
    steps = {"plain": _plain(nets, batch)}
    for name in options.only or VARIANTS:
        steps[name] = _ours(nets, batch, VARIANTS[name], options.batch_size)
    print(
        f"{options.resolution} px, width {options.width}, batch {options.batch_size}, {device},"
        f" {torch.get_num_threads()} threads"
    )
    times = measure(steps, options.repeats)
    for name, elapsed_s in times.items():
        print(f"{name:<28}{options.batch_size / elapsed_s:8.1f} images/s {times['plain'] / elapsed_s:6.2f} x plain")


def measure(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of every step, interleaved so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def _nets(width: int, device: str) -> tuple[Generator, Discriminator]:
    torch.manual_seed(0)
    return Generator(width).to(device), Discriminator(width).to(device)


def _batch(size: int, resolution: int, device: str) -> Batch:
    shape = (size, 3, resolution, resolution)
    text = torch.randn(size, 24, 384, device=device)
    pooled = torch.nn.functional.normalize(text.mean(1), dim=-1)
    images = [torch.rand(shape, device=device) * 2 - 1 for _ in range(2)]
    return Batch(images[0], images[1], text, pooled, ("x",) * size, None, size)


def _ours(
    nets: tuple[Generator, Discriminator], batch: Batch, options: dict[str, object], size: int
) -> Callable[[], object]:
    cfg = TrainConfig.model_validate({"images": 10**9, "batch_size": size, **options})
    state = create_state(copy.deepcopy(nets[0]), copy.deepcopy(nets[1]), cfg)
    return lambda: train_step(state, batch, cfg)


def _plain(nets: tuple[Generator, Discriminator], batch: Batch) -> Callable[[], object]:
    generator, discriminator = copy.deepcopy(nets[0]), copy.deepcopy(nets[1])
    average = copy.deepcopy(generator)
    opt_g = torch.optim.Adam(generator.parameters(), 2e-4, (0.5, 0.999), foreach=False)
    opt_d = torch.optim.Adam(discriminator.parameters(), 2e-4, (0.5, 0.999), foreach=False)

    def step() -> None:
        fake = generator(batch.source_BCHW, batch.text_BTD).detach()
        real_logits = discriminator(batch.source_BCHW, batch.target_BCHW, batch.pooled_BD)
        fake_logits = discriminator(batch.source_BCHW, fake, batch.pooled_BD)
        opt_d.zero_grad()
        discriminator_loss("hinge", real_logits, fake_logits).backward()
        opt_d.step()
        fake = generator(batch.source_BCHW, batch.text_BTD)
        logits = discriminator(batch.source_BCHW, fake, batch.pooled_BD)
        opt_g.zero_grad()
        (100 * l1_loss(fake, batch.target_BCHW) + generator_loss("hinge", logits)).backward()
        opt_g.step()
        with torch.no_grad():
            for name, value in average.state_dict().items():
                value.copy_(0.999 * value + 0.001 * generator.state_dict()[name])

    return step


if __name__ == "__main__":
    main()
