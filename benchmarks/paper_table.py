"""E2GAN's table on our data: quality and cost of a new concept by every way to get it.

Same photos, same metric, held-out photos only. Rows: pix2pix's ResNet-9 from scratch, our generator from scratch, full
fine-tune of the base, LoRA with searched ranks and data, fixed ranks (1x, 4x), random ranks of equal size, all data,
random data, warm start. Every cell is stored, so a killed run goes on. MACs of training: 3 forward passes for full
training, 2 for LoRA on a frozen network (no weight gradients); discriminators are not counted.

python -m benchmarks.paper_table --quick                                     # 4 concepts, 1 seed, up to half an hour
python -m benchmarks.paper_table --config configs/paper.yaml --seeds 3       # a finished run's pairs and base
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from safetensors.torch import load
from torch import nn

from benchmarks.adapt_world import AdaptWorld, add_options, open_world
from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import TrainConfig
from e2gan_cluster.evaluate.inference import run_generator
from e2gan_cluster.evaluate.metrics import evaluate_outputs
from e2gan_cluster.nn.baselines import ResNet9
from e2gan_cluster.nn.discriminator import Discriminator
from e2gan_cluster.nn.lora import cap_ranks, lora_size
from e2gan_cluster.nn.profile import latency_s, profile
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.search.adapt import adapt_concepts
from e2gan_cluster.search.jobs import serve_here
from e2gan_cluster.search.records import ConceptResult
from e2gan_cluster.search.training import AdapterTraining
from e2gan_cluster.search.worker import ConceptData, WarmWorker
from e2gan_cluster.track.mlflow_tracker import NullTracker
from e2gan_cluster.train.data import PairData
from e2gan_cluster.train.loop import create_state, train
from e2gan_cluster.train.nets import build_discriminator, build_generator

PAPER = {
    "seconds": ("training time", 4.8),
    "gmacs": ("training MACs", 14.0),
    "parameters": ("trained parameters", 121.0),
    "latency_ms": ("inference latency", 1.35),
    "metric": ("error (paper: FID 86.03 and 80.28)", 1.07),
}
"""pix2pix divided by E2GAN, E2GAN table 1: column, its name, the paper's ratio."""


MOST_TIMES = 8
"""Longest pix2pix training, in images of an adapter's training."""


@dataclass(frozen=True)
class Cell:
    """One training."""

    metric: float
    seconds: float
    images: int
    gmacs: float
    parameters: int
    bytes: int
    latency_ms: float


@dataclass
class Task:
    """What a row's function gets."""

    world: AdaptWorld
    warm: WarmWorker
    concept: Concept
    data: ConceptData
    pick: ConceptResult
    results: Mapping[str, ConceptResult]
    seed: int
    pix2pix_width: int

    @property
    def cfg(self) -> TrainConfig:
        """Training options of adapters."""
        search = self.world.config.search
        loss = search.train.loss
        if search.discriminator == "none":
            loss = loss.model_copy(update={"gan_weight": 0.0})
        return search.train.model_copy(update={"loss": loss})


def _forward_gmacs(module: nn.Module, task: Task) -> float:
    side = task.world.config.pairs.resolution
    return profile(module, torch.zeros(1, 3, side, side), task.data.tokens_TD[None]).macs / 1e9


def _latency_ms(module: nn.Module, task: Task) -> float:
    side = task.world.config.pairs.resolution
    return 1000 * latency_s(module.eval(), torch.zeros(1, 3, side, side), task.data.tokens_TD[None])


def full_training(task: Task, generator: nn.Module, discriminator: nn.Module, images: int, lr: float) -> Cell:
    """Every weight is trained, with pix2pix's loss."""
    loss = task.cfg.loss.model_copy(update={"gan_weight": 1.0, "l1_weight": 100.0, "lpips_weight": 0.0})
    update = {"images": images, "lr": lr, "lr_disc": lr, "loss": loss}
    cfg = task.cfg.model_copy(update=update)
    generator.requires_grad_(True).train()
    state = create_state(generator, discriminator.requires_grad_(True).train(), cfg)
    result = train(state, task.data.pairs(max(task.data.rungs)), cfg, seed=task.seed)
    with state.averaged() as averaged:
        metric = task.warm.measure(averaged, task.data)
    parameters = sum(p.numel() for p in generator.parameters())
    gmacs, latency = _forward_gmacs(generator, task), _latency_ms(generator, task)
    return Cell(metric, result.seconds, images, 3 * gmacs * images, parameters, 4 * parameters, latency)


def pix2pix(task: Task) -> Cell:
    """ResNet-9 from scratch, twice the images (paper: 200 epochs against 100)."""
    torch.manual_seed(task.seed)
    judge = Discriminator(task.pix2pix_width, 0)
    return full_training(task, ResNet9(task.pix2pix_width), judge, 2 * task.cfg.images, 2e-4)


def pix2pix_until_as_good(task: Task) -> Cell:
    """ResNet-9 from scratch, at a constant rate, until as good as the searched adapter or `MOST_TIMES` as long."""
    torch.manual_seed(task.seed)
    generator, judge = ResNet9(task.pix2pix_width), Discriminator(task.pix2pix_width, 0)
    images = MOST_TIMES * task.cfg.images
    loss = task.cfg.loss.model_copy(update={"gan_weight": 1.0, "l1_weight": 100.0, "lpips_weight": 0.0})
    update = {"images": images, "lr": 2e-4, "lr_disc": 2e-4, "loss": loss, "decay_from": 1.0}
    cfg = task.cfg.model_copy(update=update)
    state, pairs, seconds, metric = create_state(generator, judge, cfg), task.data.pairs(max(task.data.rungs)), 0.0, 1.0
    while state.images_seen < images and metric > (task.pick.metric or 0.0):
        until = state.images_seen + task.cfg.images // 2
        seconds += train(state, pairs, cfg, seed=task.seed, until=until).seconds
        with state.averaged() as averaged:
            metric = task.warm.measure(averaged, task.data)
    parameters = sum(p.numel() for p in generator.parameters())
    gmacs = 3 * _forward_gmacs(generator, task) * state.images_seen
    return Cell(metric, seconds, state.images_seen, gmacs, parameters, 4 * parameters, _latency_ms(generator, task))


def from_scratch(task: Task) -> Cell:
    """Our generator from scratch, twice the images."""
    torch.manual_seed(task.seed)
    base = task.warm.base
    judge = build_discriminator(base.nets, base.text_dim)
    return full_training(task, build_generator(base.nets, base.text_dim), judge, 2 * task.cfg.images, 2e-4)


def fine_tune(task: Task) -> Cell:
    """The whole base."""
    base = task.warm.base
    judge = build_discriminator(base.nets, base.text_dim)
    if base.discriminator is not None:
        judge.load_state_dict(base.discriminator.state_dict())
    return full_training(task, task.warm.generator(), judge, task.cfg.images, 2e-4)


def lora(
    task: Task,
    multiplier: int | None = None,
    size: int | None = None,
    ranks: Mapping[str, int] | None = None,
    pairs: PairData | None = None,
    donor: Mapping[str, torch.Tensor] | None = None,
) -> Cell:
    """An adapter; what is not given is as searched."""
    factor = multiplier or task.pick.rank_multiplier
    wanted = ranks or {layer: rank * factor for layer, rank in task.world.setting.start_ranks.items()}
    training = AdapterTraining(
        task.warm, task.data, size=size or task.pick.data_size, ranks=wanted, cfg=task.cfg, seed=task.seed, donor=donor
    )
    training.pairs = pairs or training.pairs
    started = time.perf_counter()
    for _ in training.until(1.0):
        pass
    seconds = time.perf_counter() - started
    metric, files, trained = training.evaluate(1.0), training.files(), training.trained_parameters
    with torch.no_grad():
        merged = training.model.merge_and_unload().cpu()
    gmacs = 2 * _forward_gmacs(merged, task) * task.cfg.images
    stored = len(files["adapter_model.safetensors"])
    return Cell(metric, seconds, task.cfg.images, gmacs, trained, stored, _latency_ms(merged, task))


def random_ranks(task: Task) -> Cell:
    """As many LoRA weights as searched, placed at random over all layers."""
    generator = task.warm.generator()
    layers = [name for name, m in generator.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    budget, ranks = lora_size(generator, task.pick.ranks), dict.fromkeys(layers, 0)
    draw = random.Random(f"{task.concept.name}{task.seed}")
    while lora_size(generator, {k: v for k, v in ranks.items() if v} or {layers[0]: 1}) < budget:
        ranks[draw.choice(layers)] += 1
        ranks = {name: min(rank, cap_ranks(generator, {name: 10**6})[name]) for name, rank in ranks.items()}
    return lora(task, ranks={name: rank for name, rank in ranks.items() if rank})


def all_data(task: Task) -> Cell:
    """The largest data rung."""
    return lora(task, size=max(task.data.rungs))


def random_data(task: Task) -> Cell:
    """As many pairs as searched, drawn at random."""
    whole = task.data.train
    rows = np.random.default_rng(task.seed).permutation(len(whole))[: task.pick.data_size].tolist()
    part = replace(task.data, train=whole.take(rows), rungs={len(rows): range(len(rows))})
    return lora(task, pairs=part.pairs(len(rows)))


def warm_start(task: Task) -> Cell:
    """From the adapter of the nearest other concept."""
    others = [name for name in task.results if name != task.concept.name]
    prompts = [task.results[name].prompt for name in others]
    pooled = task.warm.encoder.encode([task.concept.prompt, *prompts]).pooled_BD
    nearest = task.results[others[int((pooled[1:] @ pooled[0]).argmax())]]
    return lora(task, donor=load(task.world.store.get(nearest.adapter_key_prefix + "adapter_model.safetensors")))


def rows_of(as_good: bool = False) -> dict[str, Callable[[Task], Cell]]:
    """All rows of the table."""
    return {
        "pix2pix ResNet-9 from scratch": pix2pix,
        **({"pix2pix until as good as LoRA": pix2pix_until_as_good} if as_good else {}),
        "our generator from scratch": from_scratch,
        "full fine-tune of the base": fine_tune,
        "LoRA searched": lora,
        "LoRA 1x": partial(lora, multiplier=1),
        "LoRA 4x": partial(lora, multiplier=4),
        "LoRA random ranks": random_ranks,
        "LoRA all data": all_data,
        "LoRA random data": random_data,
        "LoRA warm start": warm_start,
    }


def main() -> None:
    """Reads the command line, trains what is missing, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pix2pix-width", type=int, default=64)
    parser.add_argument("--as-good", action="store_true", help="also train pix2pix until it is as good; takes long")
    options = parser.parse_args()
    seeds, width = (1, min(32, options.pix2pix_width)) if options.quick else (options.seeds, options.pix2pix_width)
    world = open_world(options)
    results = adapt_concepts(
        world.config, world.store, world.setting.base_id, world.concepts, SilentReporter(), NullTracker(), serve_here
    )
    results = {name: result for name, result in results.items() if result.state == "done"}
    warm, rows = world.warm(), rows_of(options.as_good)
    cells: dict[str, list[Cell]] = {name: [] for name in rows}
    for concept in (c for c in world.concepts if c.name in results):
        data = warm.concept(concept)
        for seed in range(seeds):
            task = Task(world, warm, concept, data, results[concept.name], results, seed, width)
            for name, row in rows.items():
                cells[name].append(_cell(task, name, row))
    _print_table(world, results, warm, cells)


def _cell(task: Task, name: str, row: Callable[[Task], Cell]) -> Cell:
    slug = name.lower().replace(" ", "-")
    key = f"bench/table/{task.pick.fingerprint}/{task.concept.name}/{slug}-s{task.seed}-w{task.pix2pix_width}.json"
    try:
        return Cell(**json.loads(task.world.store.get(key)))
    except KeyError:
        cell = row(task)
    task.world.store.put_new(key, json.dumps(asdict(cell)).encode())
    print(f"{task.concept.name} seed {task.seed} {name}: {cell.metric:.4f} in {cell.seconds:.0f} s", flush=True)
    return cell


def _print_table(
    world: AdaptWorld, results: Mapping[str, ConceptResult], warm: WarmWorker, cells: Mapping[str, list[Cell]]
) -> None:
    metric = world.config.search.metric
    print(
        f"\n{len(results)} concepts, {world.config.pairs.resolution} px, {metric} on held-out photos (lower is better)"
    )
    print(f"{'':<32}{metric:>16}{'train s':>9}{'images':>8}{'TMACs':>8}{'trained':>10}{'kB':>8}{'ms':>6}")
    for name, row in {**cells, **_references(world, results, warm)}.items():
        seeds = len(row) // len(results)
        # Cells lie concept by concept: one mean over concepts per seed, and its spread.
        values = [statistics.mean(cell.metric for cell in row[seed::seeds]) for seed in range(seeds)]
        spread = statistics.stdev(values) if seeds > 1 else 0.0

        def mean(field: str, row: list[Cell] = row) -> float:
            return statistics.mean(float(getattr(cell, field)) for cell in row)

        print(
            f"{name:<32}{statistics.mean(values):>9.4f} ±{spread:.3f}{mean('seconds'):>9.0f}{mean('images'):>8.0f}"
            f"{mean('gmacs') / 1000:>8.2f}{mean('parameters') / 1e6:>8.3f} M{mean('bytes') / 1000:>8.0f}"
            f"{mean('latency_ms'):>6.0f}"
        )
    searched, scratch = cells["LoRA searched"], cells["pix2pix ResNet-9 from scratch"]
    for field, (name, paper) in PAPER.items():
        ratio = sum(getattr(c, field) for c in scratch) / sum(getattr(c, field) for c in searched)
        print(f"{name}: pix2pix / LoRA searched = {ratio:.2f}x (paper {paper:.2f}x)")
    as_good = cells.get("pix2pix until as good as LoRA", [])
    if as_good:
        reached = sum(
            c.metric <= (result.metric or 0.0) for c, result in zip(as_good, _repeated(results, as_good), strict=True)
        )
        times = sum(c.seconds for c in as_good) / sum(c.seconds for c in searched)
        print(f"pix2pix was as good in {reached} of {len(as_good)} trainings, after {times:.1f}x the time (sum of all)")
    trained = [result.images / result.training_images for result in results.values()]
    print(f"the whole search of a concept: {statistics.mean(trained):.2f} final trainings")


def _repeated(results: Mapping[str, ConceptResult], cells: list[Cell]) -> list[ConceptResult]:
    """The result that each cell belongs to: cells lie concept by concept."""
    return [result for result in results.values() for _ in range(len(cells) // len(results))]


def _references(world: AdaptWorld, results: Mapping[str, ConceptResult], warm: WarmWorker) -> dict[str, list[Cell]]:
    """What costs no training: the base as it is, and the unchanged photo."""
    metric = world.config.search.metric
    rows: dict[str, list[Cell]] = {"base, no adapter": [], "unchanged photo": []}
    for concept in (c for c in world.concepts if c.name in results):
        data = warm.concept(concept)
        photos = warm.photos(data)
        outputs = {
            "base, no adapter": run_generator(warm.base.generator, photos.inputs_NHWC, data.tokens_TD),
            "unchanged photo": photos.inputs_NHWC,
        }
        for name, output in outputs.items():
            value = evaluate_outputs(photos.inputs_NHWC, photos.edits_NHWC, output, [metric], warm.nets([metric]))
            rows[name].append(Cell(value[metric], 0, 0, 0, 0, 0, 0))
    return rows


if __name__ == "__main__":
    main()
