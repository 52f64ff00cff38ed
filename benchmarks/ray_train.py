"""Images/s of the same training loop bare and on Ray Train: one worker, and two.

The bare loop and Ray's workers take turns of some seconds each within one run, so that a busy machine slows both
alike. The workers send their reports to an actor, as in the training of a base. Start-up (Ray, worker group, imports)
and the first turn of each are left out. Every process computes on one thread. CPU seconds of the training process per
image stand beside: they say what Ray costs inside it where other programs share the cores.

python -m benchmarks.ray_train --quick
python -m benchmarks.ray_train --resolution 128 --width 32 --turns 6
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from e2gan_cluster.config import RayConfig, TrainConfig
from e2gan_cluster.nn.discriminator import Discriminator
from e2gan_cluster.nn.generator import Generator
from e2gan_cluster.ray_runtime import ray_session
from e2gan_cluster.train.data import PairData
from e2gan_cluster.train.distributed import this_worker
from e2gan_cluster.train.loop import Workers, create_state, train

POLL_S = 0.02


@dataclass(frozen=True)
class Turn:
    """One turn of a training.

    Attributes:
        images_per_s: All workers together.
        cpu_s_per_image: Of this process, per image of its own share.
    """

    images_per_s: float
    cpu_s_per_image: float


class Training:
    """A training that goes on turn by turn.

    Args:
        settings: The command line.
        workers: This worker among several.
    """

    def __init__(self, settings: Mapping[str, Any], workers: Workers) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.batch, self.steps, self.workers = settings["batch_size"], settings["steps"], workers
        self.cfg = TrainConfig(images=10**9, batch_size=self.batch)
        side, width = settings["resolution"], settings["width"]
        images = torch.randint(0, 256, (64, side, side, 3), dtype=torch.uint8)
        tokens = torch.randn(2, 24, 384)
        self.data = PairData(images, images.flip(0), torch.arange(64) % 2, tokens, tokens.mean(1))
        self.state = create_state(Generator(width), Discriminator(width), self.cfg)

    def turn(self, report: Callable[[Mapping[str, float]], None]) -> Turn:
        """Trains ``steps`` steps; reports are part of the time."""
        images = self.steps * self.batch
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        train(
            self.state, self.data, self.cfg, seed=0, until=self.state.images_seen + images, workers=self.workers,
            on_report=lambda _, metrics: report(metrics),
        )  # fmt: skip
        elapsed_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
        return Turn(images / elapsed_s, cpu_s * self.workers.size / images)


class Relay:
    """The actor that takes the workers' reports."""

    def push(self, metrics: dict[str, float]) -> bool:
        """Takes a report; answers whether the run has ended."""
        return False


def ray_worker(settings: dict[str, Any]) -> None:
    """Waits for each turn's file, trains, and answers by a file."""
    import ray

    folder, workers = Path(settings["folder"]), this_worker()
    training = Training(settings, workers)
    for number in range(settings["turns"] + 1):
        wait_for(folder / f"go-{number}")
        turn = training.turn(lambda metrics: ray.get(settings["relay"].push.remote(dict(metrics))))
        if workers.rank == 0:
            write(folder / f"done-{number}", json.dumps(asdict(turn)))


def wait_for(path: Path) -> None:
    """Returns once the file is there."""
    while not path.exists():
        time.sleep(POLL_S)


def write(path: Path, text: str) -> None:
    """The file appears whole."""
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").rename(path)


def compare(settings: dict[str, Any], num_workers: int) -> list[tuple[Turn, Turn]]:
    """(bare, Ray Train) of each turn but the first."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    bare = Training(settings, Workers())
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer = TorchTrainer(
            ray_worker,
            train_loop_config={**settings, "folder": name, "relay": ray.remote(num_cpus=0)(Relay).remote()},
            scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(storage_path=name),
        )
        thread = threading.Thread(target=trainer.fit, daemon=True)
        thread.start()
        for number in range(settings["turns"] + 1):
            ours = bare.turn(lambda _: None)
            write(folder / f"go-{number}", "")
            wait_for(folder / f"done-{number}")
            found.append((ours, Turn(**json.loads((folder / f"done-{number}").read_text()))))
        thread.join()
    return found[1:]


def show(name: str, turns: list[tuple[Turn, Turn]]) -> None:
    """Medians, and the ratio of each turn."""
    bare, ray = (statistics.median(pair[n].images_per_s for pair in turns) for n in (0, 1))
    ratios = sorted(pair[1].images_per_s / pair[0].images_per_s for pair in turns)
    cpu = statistics.median(pair[1].cpu_s_per_image / pair[0].cpu_s_per_image for pair in turns)
    print(
        f"{name}: bare {bare:.2f}, Ray Train {ray:.2f} images/s: {statistics.median(ratios):.3f} x"
        f" ({ratios[0]:.3f} to {ratios[-1]:.3f}); CPU seconds per image {cpu:.3f} x",
        flush=True,
    )


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 px, width 16")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=6, help="turns of each")
    options = parser.parse_args()
    if options.quick:
        options.resolution, options.width = 64, 16
    settings = vars(options)
    with ray_session(RayConfig(num_cpus=2)):
        show("1 worker ", compare(settings, 1))
        show("2 workers", compare(settings, 2))


if __name__ == "__main__":
    main()
