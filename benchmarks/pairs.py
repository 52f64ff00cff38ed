"""What pair generation costs beside the teacher, and what batching and caching gain; prints ratios of one run.

python -m benchmarks.pairs                 # everything, about 6 minutes on 2 cores
python -m benchmarks.pairs --quick         # the same with less work, to see that it runs
python -m benchmarks.pairs --only noop

stock    our back-end against the stock pipeline called photo by photo, prompt by prompt
ray      Ray Data with one actor against a bare loop over the same shards and teacher, in turns; and the share of the
         time that the actor works (a bare loop: all of it), which a busy machine changes little
workers  Ray Data with two actors against one
noop     rows per second and the driver's memory with a teacher that costs nothing, 1,000 against 10,000 rows, and the
         CPU time of all processes for each further row, which a busy machine changes little

Every process computes on one thread. Rates of Ray leave out its start and the loading of the teacher: they count from
the first finished shard of each run to the last.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
from PIL import Image

from benchmarks.cpu import tree_cpu_s
from e2gan_cluster.concepts import Concept, load_catalogue
from e2gan_cluster.config import RunConfig
from e2gan_cluster.pairs.generate import generate_pairs
from e2gan_cluster.pairs.photos import list_photos, load_photo, square_crop
from e2gan_cluster.pairs.plan import SPLITS, ShardSpec, plan_items, plan_shards
from e2gan_cluster.pairs.scan import scan_photos
from e2gan_cluster.pairs.worker import ShardMaker
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.ray_runtime import ray_session
from e2gan_cluster.storage import open_store

TURNS = 3
SECTIONS = ("stock", "ray", "workers", "noop")
ROOT = Path(__file__).resolve().parent.parent


class Stopwatch(SilentReporter):
    """Notes when rows were finished."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, int]] = []

    def update(self, task: str, done: int, **facts: object) -> None:
        """One mark per finished shard."""
        self.marks.append((time.perf_counter(), done))

    def rate(self) -> float:
        """Rows per second from the first mark to the last."""
        (start_s, first), (end_s, last) = self.marks[0], self.marks[-1]
        return (last - first) / (end_s - start_s)


def config_of(folder: Path, teacher: dict[str, Any], photos: str = "bundled", **pairs: Any) -> RunConfig:
    """A run with 64-row shards at 128 px."""
    return RunConfig.model_validate(
        {
            "storage": str(folder),
            "photos": {"source": photos},
            "teacher": teacher,
            "pairs": {"pairs_per_concept": 1000, **pairs},
            "ray": {"num_cpus": 2},
        }
    )


def specs_of(config: RunConfig, concepts: Sequence[Concept]) -> list[ShardSpec]:
    """All shards of a run."""
    items = plan_items(scan_photos(config.photos).origins, config)
    return [spec for c in concepts for split in SPLITS for spec in plan_shards(items[split], split, c, config)]


def bench_stock(args: argparse.Namespace) -> dict[str, float]:
    """Ours: one `edit` per concept over all photos. Stock: one pipeline call per photo and prompt."""
    import torch

    from e2gan_cluster.teacher.instruct import InstructTeacher

    torch.set_num_threads(1)
    config = config_of(Path("unused"), args.teacher)
    teacher = InstructTeacher(config.teacher)
    photos = [load_photo(ref, 64).image_HWC for ref in list_photos(config.photos)[: args.photos]]
    squares = np.stack([square_crop(photo, 128, 0, "0" * 16) for photo in photos if photo is not None])
    concepts = load_catalogue("bundled")[: args.prompts]
    options = {
        "num_inference_steps": config.teacher.steps or teacher.defaults.steps,
        "guidance_scale": config.teacher.guidance_scale or teacher.defaults.guidance_scale,
        "image_guidance_scale": config.teacher.image_guidance_scale or teacher.defaults.image_guidance_scale,
    }
    teacher.edit(squares[:1], ["warm up"], [0])
    start = time.perf_counter()
    for concept in concepts:
        for n, square in enumerate(squares):
            generator = torch.Generator().manual_seed(n)
            teacher.pipe(prompt=concept.prompt, image=Image.fromarray(square), generator=generator, **options)
    stock_s = time.perf_counter() - start
    start = time.perf_counter()
    for concept in concepts:
        teacher.edit(squares, [concept.prompt] * len(squares), range(len(squares)))
    ours_s = time.perf_counter() - start
    edits = len(concepts) * len(squares)
    return {"stock_per_s": edits / stock_s, "ours_per_s": edits / ours_s, "ours_over_stock": stock_s / ours_s}


def bench_ray(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """One actor and, where asked for, two, against the bare loop; all in turns, medians over the turns."""
    import torch

    torch.set_num_threads(1)
    catalogue = load_catalogue("bundled")
    config = config_of(folder / "loop", args.teacher)
    maker = ShardMaker(config, {c.name: c for c in catalogue}, open_store(config.storage))
    one_s = loop_seconds(maker, config, catalogue[:1])
    each = max(1, min((len(catalogue) - 1) // TURNS, round(args.seconds / TURNS / one_s)))
    turns: list[dict[str, float]] = []
    for turn in range(TURNS):
        concepts = catalogue[1 + turn * each : 1 + (turn + 1) * each]
        rows = sum(len(spec.items) for spec in specs_of(config, concepts))
        found = {"loop_per_s": rows / loop_seconds(maker, config, concepts)}
        for name, count in (("one_actor", 1), ("two_actors", 2)):
            if count == 1 or "workers" in args.sections:
                storage = folder / f"{name}-{turn}"
                pool = config_of(storage, args.teacher, min_workers=count, max_workers=count)
                rate, busy = ray_rate(pool, concepts)
                found |= {f"{name}_per_s": rate, f"{name}_busy": busy}
        found["one_actor_over_loop"] = found["one_actor_per_s"] / found["loop_per_s"]
        if "two_actors_per_s" in found:
            found["two_actors_over_one"] = found["two_actors_per_s"] / found["one_actor_per_s"]
        turns.append(found)
    medians = {name: statistics.median(found[name] for found in turns) for name in turns[0]}
    return {**medians, "concepts": float(TURNS * each)}


def loop_seconds(maker: ShardMaker, config: RunConfig, concepts: Sequence[Concept]) -> float:
    """Seconds of a plain loop over the shards of some concepts."""
    specs = specs_of(config, concepts)
    start = time.perf_counter()
    for spec in specs:
        maker.make(spec)
    return time.perf_counter() - start


def ray_rate(config: RunConfig, concepts: Sequence[Concept]) -> tuple[float, float]:
    """Rows per second through Ray Data once its actors work, and the share of that time they were at work."""
    watch = Stopwatch()
    with ray_session(config.ray):
        results = generate_pairs(config, open_store(config.storage), concepts, watch)
    (start_s, first), (end_s, last) = watch.marks[0], watch.marks[-1]
    # Seconds go with rows; the shards that were ready at the first mark are left out.
    worked_s = sum(result.seconds for result in results.values()) * (last - first) / last
    return watch.rate(), worked_s / (end_s - start_s) / config.pairs.max_workers


def noop_run(photos: str, folder: Path, count: int) -> None:
    """One run in a process of its own; prints its rate and the driver's memory."""
    concepts = [Concept(f"noop-{n}", f"invert number {n}") for n in range(count)]
    teacher = {"backend": "custom", "model": "benchmarks.noop_teacher:make", "batch_size": 64}
    config = config_of(folder, teacher, photos, max_workers=2, min_workers=2)
    watch = Stopwatch()
    with ray_session(config.ray):
        results = generate_pairs(config, open_store(config.storage), concepts, watch)
        cpu_s = tree_cpu_s()
    rows = sum(result.train_ok + result.heldout_ok for result in results.values())
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak_mb = int(status["VmHWM"].split()[0]) / 1024
    print(json.dumps({"rows": rows, "rows_per_s": watch.rate(), "driver_peak_mb": peak_mb, "cpu_s": cpu_s}))


def bench_noop(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """500 small photos and more and more concepts."""
    photos = folder / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for n in range(args.noop_photos):
        picture = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(picture).resize((256, 192), Image.Resampling.BICUBIC).save(photos / f"{n}.jpg")
    found: dict[str, float] = {}
    for factor in (2, 20):
        command = [
            sys.executable,
            "-m",
            "benchmarks.pairs",
            "--noop-run",
            str(photos),
            str(folder / f"noop-{factor}"),
            str(factor),
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        record = json.loads(run.stdout.strip().splitlines()[-1])
        found |= {f"{name}_{record['rows']}": value for name, value in record.items() if name != "rows"}
    small, large = [value for name, value in found.items() if name.startswith("driver_peak_mb")]
    few_s, many_s = [value for name, value in found.items() if name.startswith("cpu_s")]
    few, many = [int(name.rpartition("_")[2]) for name in found if name.startswith("cpu_s")]
    further = {"cpu_ms_per_further_row": 1000 * (many_s - few_s) / (many - few)}
    return {**found, **further, "driver_growth_mb": large - small}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less work")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="only these sections")
    parser.add_argument("--seconds", type=float, default=35.0, help="wanted time of each loop")
    parser.add_argument("--model", default="bundled", help="InstructPix2Pix-type teacher")
    parser.add_argument("--noop-run", nargs=3, metavar=("PHOTOS", "FOLDER", "CONCEPTS"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.sections = args.only or list(SECTIONS)
    args.seconds = 4.0 if args.quick else args.seconds
    args.photos, args.prompts, args.noop_photos = (8, 2, 100) if args.quick else (32, 6, 500)
    args.teacher = {"model": args.model, "device": "cpu"}
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the sections."""
    args = arguments(argv)
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = str(ROOT)
    if args.noop_run:
        noop_run(args.noop_run[0], Path(args.noop_run[1]), int(args.noop_run[2]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "stock" in args.sections:
            report("stock", bench_stock(args))
        if {"ray", "workers"} & set(args.sections):
            report("ray", bench_ray(args, folder))
        if "noop" in args.sections:
            report("noop", bench_noop(args, folder))


def report(section: str, found: dict[str, float]) -> None:
    """One JSON line per section, as soon as it is measured."""
    print(json.dumps({section: {name: round(value, 3) for name, value in found.items()}}), flush=True)


if __name__ == "__main__":
    main()
