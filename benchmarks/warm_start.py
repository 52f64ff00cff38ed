"""Starting an adapter from the nearest concept's against starting from zero: images to reach the same metric.

Every concept is trained cold; then again from the finished adapter of the nearest other concept (prompt embedding).
Printed: images after which the warm training has reached what the cold one ends with, and both at equal images.

python -m benchmarks.warm_start --concepts 8 --photos FOLDER
python -m benchmarks.warm_start --quick
"""

import argparse
import json
import statistics
from collections.abc import Mapping

import torch
from safetensors.torch import load

from benchmarks.adapt_world import AdaptWorld, add_options, open_world
from e2gan_cluster.concepts import Concept
from e2gan_cluster.pairs.shards import pairs_digest
from e2gan_cluster.search.records import TrialSpec
from e2gan_cluster.search.training import AdapterTraining
from e2gan_cluster.search.worker import WarmWorker

POINTS = 10


def trace(
    world: AdaptWorld, warm: WarmWorker, concept: Concept, donor: str | None, tensors: Mapping[str, torch.Tensor] | None
) -> tuple[list[tuple[int, float]], dict[str, bytes]]:
    """Metric over images, and the adapter; kept in the store."""
    search = world.setting.fingerprint(concept, pairs_digest(world.store, world.config, concept))
    prefix = f"bench/warm/{search}/{concept.name}/{donor or 'cold'}"
    try:
        points = [(int(i), float(m)) for i, m in json.loads(world.store.get(f"{prefix}/curve.json"))]
        return points, {"adapter_model.safetensors": world.store.get(f"{prefix}/adapter_model.safetensors")}
    except KeyError:
        data = warm.concept(concept)
    spec = TrialSpec(concept.name, max(world.config.search.rank_multipliers), max(data.rungs))
    ranks = {layer: rank * spec.multiplier for layer, rank in world.setting.start_ranks.items()}
    cfg = world.setting.train_config(spec)
    training = AdapterTraining(warm, data, size=spec.data_size, ranks=ranks, cfg=cfg, seed=0, donor=tensors)
    training.evaluate(0.0)
    for step in range(1, POINTS + 1):
        for _ in training.until(step / POINTS):
            pass
        training.evaluate(step / POINTS)
    points, files = [(p.images, p.metric) for p in training.curve], training.files()
    world.store.put(f"{prefix}/adapter_model.safetensors", files["adapter_model.safetensors"])
    world.store.put(f"{prefix}/curve.json", json.dumps(points).encode())
    return points, files


def main() -> None:
    """Reads the command line, measures, and prints one row per concept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    world = open_world(parser.parse_args())
    warm = world.warm()
    pooled = warm.encoder.encode([concept.prompt for concept in world.concepts]).pooled_BD
    cold = {concept.name: trace(world, warm, concept, None, None) for concept in world.concepts}
    columns = f"{'cosine':>8}{'cold end':>10}{'warm start':>12}{'warm end':>10}{'images to equal':>17}"
    print(f"{'concept':<14}{'donor':<14}{columns}")
    speedups = []
    for row, concept in enumerate(world.concepts):
        cosine_N = pooled @ pooled[row]
        cosine_N[row] = -2.0
        donor = world.concepts[int(cosine_N.argmax())].name
        tensors = load(cold[donor][1]["adapter_model.safetensors"])
        points, _ = trace(world, warm, concept, donor, tensors)
        target, total = cold[concept.name][0][-1][1], cold[concept.name][0][-1][0]
        reached = next((images for images, metric in points if metric <= target), None)
        speedups.append(total / max(reached, total / POINTS) if reached is not None else 1.0)
        print(
            f"{concept.name:<14}{donor:<14}{float(cosine_N.max()):>8.2f}{target:>10.4f}{points[0][1]:>12.4f}"
            f"{points[-1][1]:>10.4f}{'never' if reached is None else f'{reached} of {total}':>17}",
            flush=True,
        )
    print(f"images saved: {statistics.mean(speedups):.2f}x on average, {statistics.median(speedups):.2f}x median")


if __name__ == "__main__":
    main()
