"""Images/s of the same training loop bare and on Ray Train: one worker, and two.

Start-up (Ray, worker group, imports) is left out: speed is taken from the loop's own reports after the first.

python -m benchmarks.ray_train --quick
python -m benchmarks.ray_train --resolution 128 --width 32 --steps 200
"""

import argparse
import statistics
import tempfile
from typing import Any

import torch

from e2gan_cluster.config import RayConfig, TrainConfig
from e2gan_cluster.nn.discriminator import Discriminator
from e2gan_cluster.nn.generator import Generator
from e2gan_cluster.ray_runtime import ray_session
from e2gan_cluster.train.data import PairData
from e2gan_cluster.train.distributed import this_worker
from e2gan_cluster.train.loop import create_state, train


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 px, width 16, 100 steps")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    if options.quick:
        options.resolution, options.width, options.steps = 64, 16, 100
    settings = vars(options)
    # Bare before and after: a busy machine drifts.
    bare = [run(settings)]
    with ray_session(RayConfig(num_cpus=2)):
        one, two = on_ray(settings, 1), on_ray(settings, 2)
    bare.append(run(settings))
    reference = statistics.mean(bare)
    print(f"bare loop, 1 thread       {bare[0]:7.1f} and {bare[1]:.1f} images/s")
    print(f"Ray Train, 1 worker       {one:7.1f} images/s  {one / reference:.2f} x bare")
    print(f"Ray Train, 2 workers      {two:7.1f} images/s  {two / reference:.2f} x bare")


def run(settings: dict[str, Any]) -> float:
    """Median images/s of the loop's reports; all workers together."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch, width = settings["batch_size"], settings["width"]
    cfg = TrainConfig(images=settings["steps"] * batch, batch_size=batch)
    images = torch.randint(0, 256, (64, settings["resolution"], settings["resolution"], 3), dtype=torch.uint8)
    tokens = torch.randn(2, 24, 384)
    data = PairData(images, images.flip(0), torch.arange(64) % 2, tokens, tokens.mean(1))
    speeds: list[float] = []
    train(
        create_state(Generator(width), Discriminator(width), cfg), data, cfg, seed=0, workers=this_worker(),
        on_report=lambda _, metrics: speeds.append(metrics["images_per_s"]),
    )  # fmt: skip
    return statistics.median(speeds[1:] or speeds)


def on_ray(settings: dict[str, Any], num_workers: int) -> float:
    """`run` as the training function of a TorchTrainer."""
    from ray.train import RunConfig, ScalingConfig, get_context, report
    from ray.train.torch import TorchTrainer

    def worker(config: dict[str, Any]) -> None:
        speed = run(config)
        report({"images_per_s": speed, "rank": get_context().get_world_rank()})

    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            worker,
            train_loop_config=settings,
            scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(storage_path=folder),
        )
        metrics = trainer.fit().metrics
    assert metrics is not None
    return float(metrics["images_per_s"])


if __name__ == "__main__":
    main()
