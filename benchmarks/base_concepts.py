"""Does it matter which concepts the base learns? k-means on prompts against a random draw and a single theme.

For every choice a base is trained on 4 of 12 reference edits; then one edit of each theme that no base saw is adapted
to with LoRA, and held-out LPIPS is printed (the ablation of E2GAN's base concepts). With --quick it only shows that it
runs.

python -m benchmarks.base_concepts --quick
python -m benchmarks.base_concepts --images 4000 --adapt-images 600 --seeds 3
"""

import argparse
import copy

import numpy as np
import torch

from benchmarks.reference_edits import EDITS, concepts, reference_pairs
from e2gan_cluster.config import LossConfig, RunConfig, TrainConfig
from e2gan_cluster.evaluate.inference import run_generator
from e2gan_cluster.evaluate.metrics import MetricNets, evaluate_outputs
from e2gan_cluster.nn.discriminator import Discriminator
from e2gan_cluster.nn.generator import Generator
from e2gan_cluster.nn.lora import adaptable_layers, add_lora
from e2gan_cluster.pairs.shards import PairSet
from e2gan_cluster.text.encoder import PromptEncoder
from e2gan_cluster.train.base_concepts import choose_base_concepts
from e2gan_cluster.train.data import pair_data
from e2gan_cluster.train.loop import create_state, train

TARGETS = ("sunset", "charcoal", "watercolour", "snow")
PARTS = ("downsample", "ds", "transformer", "us", "upsample")
Pairs = dict[str, tuple[PairSet, PairSet]]


def main() -> None:
    """Reads the command line, trains, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 + 40 images, width 8")
    parser.add_argument("--images", type=int, default=4000, help="of the base")
    parser.add_argument("--adapt-images", type=int, default=600)
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--photos", default="bundled")
    options = parser.parse_args()
    if options.quick:
        options.images, options.adapt_images, options.width = 100, 40, 8
    torch.set_num_threads(1)
    encoder = PromptEncoder()
    pairs = reference_pairs(list(EDITS), options.resolution, 2, options.photos)
    scores: dict[str, list[list[float]]] = {}
    for seed in range(options.seeds):
        for choice, names in _choices(encoder, seed).items():
            base = _train_base(pairs, names, encoder, options, seed)
            scores.setdefault(choice, []).append([_adapt(base, pairs[t], encoder, options, seed) for t in TARGETS])
            print(f"seed {seed} {choice}: {', '.join(names)}", flush=True)
    print(f"{'base concepts':<16}" + "".join(f"{target:>14}" for target in TARGETS) + f"{'mean':>14}")
    for choice, rows in scores.items():
        means = np.mean(rows, axis=0)
        print(f"{choice:<16}" + "".join(f"{value:14.4f}" for value in [*means, means.mean()]))


def _choices(encoder: PromptEncoder, seed: int) -> dict[str, list[str]]:
    pool = [concept for concept in concepts() if concept.name not in TARGETS]
    chosen = {}
    for selection in ("kmeans", "random"):
        config = RunConfig.model_validate(
            {"seed": seed, "concepts": {"base_count": 4, "base_selection": selection, "new": list(TARGETS)}}
        )
        chosen[selection] = list(choose_base_concepts(config, pool, encoder).names)
    theme = ("drawing", "paint", "weather", "colour")[seed % 4]
    return chosen | {"single theme": [concept.name for concept in pool if theme in concept.tags]}


def _train_base(
    pairs: Pairs, names: list[str], encoder: PromptEncoder, options: argparse.Namespace, seed: int
) -> Generator:
    torch.manual_seed(seed)
    cfg = TrainConfig(images=options.images, lr=1e-3, loss=LossConfig(l1_weight=30))
    generator = Generator(options.width)
    state = create_state(generator, Discriminator(options.width), cfg)
    train(state, pair_data([pairs[name][0] for name in names], encoder), cfg, seed=seed)
    with state.averaged():
        return copy.deepcopy(generator)


def _adapt(
    base: Generator, sets: tuple[PairSet, PairSet], encoder: PromptEncoder, options: argparse.Namespace, seed: int
) -> float:
    generator = copy.deepcopy(base)
    rank: int = options.rank
    model = add_lora(generator, dict.fromkeys(adaptable_layers(generator, PARTS), rank), seed=seed)
    cfg = TrainConfig(images=options.adapt_images, lr=2e-3, ema_images=250, loss=LossConfig(gan_weight=0))
    state = create_state(model, None, cfg)
    train(state, pair_data([sets[0]], encoder), cfg, seed=seed)
    held = sets[1]
    with state.averaged() as adapted:
        output = run_generator(adapted, held.inputs_NHWC, encoder.encode([held.prompt]).tokens_BTD[0])
    return evaluate_outputs(held.inputs_NHWC, held.edits_NHWC, output, ["lpips"], MetricNets.load(["lpips"]))["lpips"]


if __name__ == "__main__":
    main()
