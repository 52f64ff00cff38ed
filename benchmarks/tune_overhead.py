"""What Ray Tune and our scheduling cost: hundreds of real ladders on learning curves that only sleep.

The real scheduler, ladders and Tune loop run; a trial sleeps as long as it is said to train. Printed: utilisation
against an ideal packing of the same trials, overhead per trial slot, memory of the driver, images against a full grid.

python -m benchmarks.tune_overhead --concepts 200 --trial-seconds 1.2 --workers 4
python -m benchmarks.tune_overhead --quick
"""

import argparse
import hashlib
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RayConfig, RunConfig
from e2gan_cluster.ray_runtime import ray_session
from e2gan_cluster.search.jobs import Job
from e2gan_cluster.search.records import ConceptResult, Point, TrialRecord, TrialSpec
from e2gan_cluster.search.scheduler import ConceptScheduler, ConceptTask
from e2gan_cluster.search.settings import SearchSetting
from e2gan_cluster.search.tune_loop import TuneSettings, run_on_tune
from e2gan_cluster.storage import open_store

IMAGES = 4000
POINTS = (0.125, 0.25, 0.5, 1.0)


def curve(concept: str, multiplier: int, size: int, fraction: float) -> float:
    """A concept's metric after a share of a training: power laws with the concept's own constants."""
    digest = hashlib.sha256(concept.encode()).digest()
    floor, rank_gain, data_gain, noise = (byte / 255 for byte in digest[:4])
    final = 0.1 + 0.1 * floor + 0.06 * rank_gain / multiplier + 0.06 * data_gain * (50 / size) ** 0.7
    return final * (1 + (0.25 + 0.1 * noise) * (1 / fraction - 1) / 3)


def make_runner(trial_seconds: float) -> Callable[[Job], Iterator[Mapping[str, Any]]]:
    """A runner that sleeps; seconds are spread by concept over 0.5 to 1.5 times the mean."""

    def runner(job: Job) -> Iterator[Mapping[str, Any]]:
        spec = TrialSpec.from_dict(job.payload["spec"])
        spread = 0.5 + hashlib.sha256(job.name.encode()).digest()[0] / 255
        seconds = trial_seconds * (0.1 if spec.final else spread)
        if spec.final:
            time.sleep(seconds)
            result = ConceptResult(spec.concept, "done", pick=job.payload["pick"], seconds=seconds)
            yield {"outcome": {"result": result.to_json().decode()}}
            return
        points, hopeless = [], False
        for fraction in (point for point in POINTS if point <= spec.until and not hopeless):
            time.sleep(seconds * max(0.0, fraction - max(spec.after, points[-1].fraction if points else 0.0)))
            metric = curve(spec.concept, spec.multiplier, spec.data_size, fraction)
            points.append(Point(fraction, round(IMAGES * fraction), metric))
            hopeless = any(at == fraction and metric > limit for at, limit in spec.stop_above)
            yield {"images": points[-1].images}
        last = points[-1]
        state = "hopeless" if hopeless else "done" if spec.until == 1 else "screened"
        share = last.fraction - spec.after
        record = TrialRecord(spec, state, last.metric, tuple(points), {}, round(IMAGES * share), seconds * share, 0)
        yield {"outcome": {"record": record.to_json().decode()}}

    return runner


class Counter:
    """Adds up what trials took."""

    def __init__(self) -> None:
        self.trials, self.seconds, self.images, self.rss_mb = 0, 0.0, 0, []
        self.started = time.perf_counter()

    def trial(self, concept: Concept, record: TrialRecord) -> None:
        """Count a trial."""
        self.trials, self.seconds = self.trials + 1, self.seconds + record.seconds
        self.images += record.images

    def ended(self, concept: Concept, result: ConceptResult) -> None:
        """Count a final measurement."""
        self.trials, self.seconds = self.trials + 1, self.seconds + result.seconds
        if len(self.rss_mb) % 20 == 0:
            wall_s = time.perf_counter() - self.started
            facts = f"{self.trials} slots, {self.seconds:.0f} s of trials in {wall_s:.0f} s"
            print(f"{len(self.rss_mb)} concepts, {facts}", flush=True)
        self.rss_mb.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Reads the command line and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 concepts: only shows that it runs")
    parser.add_argument("--concepts", type=int, default=200)
    parser.add_argument("--trial-seconds", type=float, default=1.2)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    count = 20 if options.quick else options.concepts
    config = RunConfig()
    concepts = [Concept(f"c{i}", f"edit number {i}") for i in range(count)]
    counter = Counter()
    with tempfile.TemporaryDirectory() as folder, ray_session(RayConfig(num_cpus=max(2, options.workers))):
        setting = SearchSetting(config, folder, "0" * 12, {"us.conv.0.1": 1})
        tasks = [ConceptTask(concept, "replayed", available=1000) for concept in concepts]
        source = ConceptScheduler(setting, open_store(folder), tasks, counter)
        started = time.perf_counter()
        run_on_tune(source, make_runner(options.trial_seconds), TuneSettings(options.workers, 0.5))
        wall_s = time.perf_counter() - started
    slots_s = wall_s * options.workers
    overhead_s = (slots_s - counter.seconds) / counter.trials
    search = config.search
    grid = len(search.rank_multipliers) * len(search.data_sizes) * IMAGES * count
    print(
        json.dumps(
            {
                "concepts": count,
                "done": sum(result.state == "done" for result in source.results().values()),
                "trial_slots": counter.trials,
                "wall_s": round(wall_s, 1),
                "utilisation": round(counter.seconds / slots_s, 3),
                "overhead_s_per_slot": round(overhead_s, 3),
                "utilisation_expected_with_30_s_trials": round(30 / (30 + overhead_s), 3),
                "images_per_concept_in_final_trainings": round(counter.images / count / IMAGES, 2),
                "images_against_full_grid": round(counter.images / grid, 3),
                "driver_peak_mb_first_and_last_concept": [round(counter.rss_mb[0]), round(counter.rss_mb[-1])],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
