"""What the chain itself costs: many concepts with a teacher and trainings that do next to nothing.

Prints seconds per concept of each stage, CPU seconds of all processes, and the driver's memory for a few and for many
concepts, in one run.

Example: ``python -m benchmarks.chain --concepts 20 200``
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.cpu import tree_cpu_s
from e2gan_cluster.batch import open_batch
from e2gan_cluster.config import RunConfig
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.ray_runtime import ray_session
from e2gan_cluster.stages import STAGES, run_stages
from e2gan_cluster.track.mlflow_tracker import open_tracker


def write_inputs(folder: Path, num_concepts: int) -> None:
    """Eight photos, and a catalogue of two base concepts and ``num_concepts`` new ones."""
    (folder / "photos").mkdir()
    for n in range(8):
        image = np.random.default_rng(n).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "photos" / f"{n}.png")
    names = ["base-a", "base-b", *(f"concept-{n}" for n in range(num_concepts))]
    entries = [{"name": name, "prompt": f"make it {name}"} for name in names]
    (folder / "concepts.yaml").write_text(json.dumps(entries))


def config_of(folder: Path) -> RunConfig:
    """The smallest run that still passes through every stage."""
    train = {"images": 1, "batch_size": 1, "checkpoint_images": 100, "eval_images": 100, "loss": {"gan_weight": 0.0}}
    return RunConfig.model_validate(
        {
            "name": "chain",
            "storage": str(folder / "run"),
            "photos": {"source": str(folder / "photos"), "heldout_fraction": 0.4},
            "concepts": {"catalogue": str(folder / "concepts.yaml"), "base": ["base-a", "base-b"]},
            "teacher": {"backend": "custom", "model": "benchmarks.noop_teacher:make"},
            "pairs": {"resolution": 32, "pairs_per_concept": 8, "max_workers": 1},
            "nets": {"width": 4, "disc_width": 4},
            "base": {"train": train},
            "search": {
                "train": train, "metric": "l1", "mode": "fixed", "rank_multipliers": [1], "data_sizes": [4],
                "crucial_parts": ["us"], "num_workers": 2,
            },
            "publish": {"formats": ["onnx-adapter"]},
        }
    )  # fmt: skip


def measure(num_concepts: int) -> dict[str, float]:
    """Seconds of each stage and the driver's peak memory."""
    with tempfile.TemporaryDirectory(prefix="chain") as name:
        folder = Path(name)
        write_inputs(folder, num_concepts)
        batch = open_batch(config_of(folder))
        tracker = open_tracker(f"sqlite:///{folder}/mlflow.db", "chain", batch.fingerprint)
        start_cpu_s = tree_cpu_s()
        outcome = run_stages(batch, SilentReporter(), tracker, STAGES)
        tracker.close()
        cpu_s = tree_cpu_s() - start_cpu_s
        assert outcome.exit_code == 0, outcome.failed
        took = {stage: float(record["seconds"]) for stage, record in outcome.stages.items()}
    return took | {"cpu_s": cpu_s, "driver_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, nargs=2, default=(20, 200), help="a few, and many")
    few, many = parser.parse_args().concepts
    began = time.monotonic()
    with ray_session(config_of(Path.cwd()).ray):
        results = {count: measure(count) for count in (few, many)}
    print(f"{'stage':10} {few:>6} concepts {many:>6} concepts   s per further concept")
    for stage in STAGES:
        a, b = results[few][stage], results[many][stage]
        print(f"{stage:10} {a:12.1f} s {b:12.1f} s   {(b - a) / (many - few):.3f}")
    a, b = (sum(results[count][stage] for stage in STAGES) for count in (few, many))
    print(f"{'all':10} {a:12.1f} s {b:12.1f} s   {(b - a) / (many - few):.3f}   ({b / many:.3f} s per concept in all)")
    a, b = results[few]["cpu_s"], results[many]["cpu_s"]
    print(f"all CPU    {a:12.1f} s {b:12.1f} s   {(b - a) / (many - few):.3f}   ({b / many:.3f} s per concept in all)")
    print(f"driver     {results[few]['driver_mb']:10.0f} MB {results[many]['driver_mb']:10.0f} MB")
    print(f"took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
