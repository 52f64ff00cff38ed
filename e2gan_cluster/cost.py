"""What a batch will take before it runs: images, hours, bytes, money; low, likely and high.

Throughputs come from what this storage has measured already, else from the config, else from a table of
measured figures (docs/benchmarks.md). Needs neither Ray nor torch.

Example: ``e2gan plan --config configs/demo.yaml``
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from e2gan_cluster.batch import Batch, peek_batch
from e2gan_cluster.config import RunConfig
from e2gan_cluster.pairs.photos import list_photos
from e2gan_cluster.status import BatchStatus, ConceptRow, batch_status
from e2gan_cluster.storage import keys

# Seconds of one CPU core, measured with the bundled teacher at 128 px and a base of width 24 at 96 px.
TEACHER_S_PER_IMAGE = 0.06
TRAIN_S_PER_IMAGE = 0.052
# Seconds of one NVIDIA H200 (benchmarks/gpu.py): InstructPix2Pix of Stable Diffusion 1.5 at 512 px with 20 steps, and a
# bf16 training step of batch 16 at width 64 and 256 px.
GPU_TEACHER_S_PER_IMAGE, GPU_TEACHER_PX, GPU_TEACHER_STEPS = 0.22, 512, 20
GPU_TRAIN_S_PER_IMAGE, GPU_REFERENCE_WIDTH, GPU_REFERENCE_PX = 0.0021, 64, 256
# An image of an adapter's training, evaluations included, costs this share of one of the base's.
ADAPT_SHARE = 1.0
REFERENCE_WIDTH, REFERENCE_PX = 24, 96
# A PNG pair at 128 px and a published version (PEFT files, merged ONNX, picture) per MB of generator weights.
PAIR_BYTES_PER_PIXEL = 3.4
MB = 1e6


@dataclass(frozen=True)
class Range:
    """A low, a likely and a high figure."""

    low: float
    likely: float
    high: float

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def scaled(self, factor: float) -> "Range":
        """All three times ``factor``."""
        return Range(self.low * factor, self.likely * factor, self.high * factor)


@dataclass(frozen=True)
class PlanRow:
    """What is left to do for one concept (or for the base).

    Attributes:
        pairs: Pairs to make.
        images: Training images to see.
        seconds: Worker seconds (CPU or GPU, whichever a worker has).
        stored_bytes: Bytes added to storage.
        cost: Price of ``seconds``.
    """

    name: str
    state: str
    pairs: int
    images: Range
    seconds: Range
    stored_bytes: float
    cost: Range


@dataclass(frozen=True)
class Plan:
    """A whole batch's plan."""

    rows: list[PlanRow]
    total: PlanRow
    wall_hours: Range
    currency: str
    sources: list[str]


@dataclass(frozen=True)
class _Speeds:
    teacher_s: float
    base_s: float
    adapt_s: float
    sources: list[str]


def make_plan(config: RunConfig) -> Plan:
    """Estimate what is left of a batch.

    Raises:
        InputError: The photo source or the catalogue cannot be read.
        StoreError: Storage cannot be read.
    """
    batch = peek_batch(config)
    status = batch_status(batch)
    speeds = _speeds(batch, status)
    num_photos = len(list_photos(batch.config.photos))
    num_train = round(num_photos * (1 - config.photos.heldout_fraction)) * config.photos.crops_per_photo
    per_concept = min(num_train, config.pairs.pairs_per_concept) + round(num_photos * config.photos.heldout_fraction)
    # Before the base is chosen every catalogue concept counts as new; the first base_count of them stand for it.
    num_unchosen = 0 if batch.base else min(config.concepts.base_count, len(status.rows))
    rows = [
        _concept_row(config, row, "base" if index < num_unchosen else row.role, per_concept, speeds)
        for index, row in enumerate(status.rows)
    ]
    rows.insert(0, _base_row(batch, speeds))
    total = PlanRow(
        "total",
        "",
        sum(row.pairs for row in rows),
        _sum(row.images for row in rows),
        _sum(row.seconds for row in rows),
        sum(row.stored_bytes for row in rows),
        _sum(row.cost for row in rows),
    )
    workers = max(config.pairs.max_workers, config.search.num_workers, config.base.num_workers)
    return Plan(rows, total, _wall(config, rows, workers), config.costs.currency, speeds.sources)


def _concept_row(config: RunConfig, row: ConceptRow, role: str, per_concept: int, speeds: _Speeds) -> PlanRow:
    pairs = 0 if row.pairs else per_concept
    images = Range(0, 0, 0)
    if role == "new" and row.state not in ("adapted", "published"):
        low, likely, high = _num_trials(config)
        images = Range(low, likely, high).scaled(config.search.train.images)
    teacher = Range(0.8, 1.0, 1.5).scaled(pairs * speeds.teacher_s)
    train = Range(0.8, 1.0, 1.3)
    seconds = teacher + Range(images.low * train.low, images.likely * train.likely, images.high * train.high).scaled(
        speeds.adapt_s
    )
    stored = pairs * PAIR_BYTES_PER_PIXEL * config.pairs.resolution**2
    if images.likely:
        stored += _version_bytes(config)
    return PlanRow(row.concept, row.state, pairs, images, seconds, stored, seconds.scaled(_price_s(config)))


def _base_row(batch: Batch, speeds: _Speeds) -> PlanRow:
    config = batch.config
    stages = _stages(batch)
    done = stages.get("base", {}).get("state") == "done"
    images = 0 if done else config.base.train.images
    seconds = Range(0.8, 1.0, 1.4).scaled(images * speeds.base_s)
    probes = 0 if stages.get("layers", {}).get("state") == "done" else config.search.probe_concepts * 9
    seconds = seconds + Range(0.8, 1.0, 1.3).scaled(probes * config.search.probe_images * speeds.adapt_s)
    images += probes * config.search.probe_images
    stored = 0.0 if done else 2 * _generator_bytes(config)
    state = "trained" if done else "waiting"
    cost = seconds.scaled(_price_s(config))
    return PlanRow("base", state, 0, Range(images, images, images), seconds, stored, cost)


def _num_trials(config: RunConfig) -> tuple[float, float, float]:
    """Fewest, likely and most training of one concept's search, in whole trainings."""
    ranks, sizes, seeds = len(config.search.rank_multipliers), len(config.search.data_sizes), config.search.seed_count
    if config.search.mode == "fixed":
        return seeds, seeds, seeds
    if config.search.mode == "grid":
        return ranks * sizes * seeds, ranks * sizes * seeds, ranks * sizes * seeds
    # Beside the pick, whole, one rung of each ladder at least and all of them at most, each as far as it is compared.
    rank_rungs, data_rungs = ranks - 1, sizes - 1
    rank_share, data_share = config.search.rank_screen, config.search.data_screen
    fewest = 1 + rank_share * min(1, rank_rungs) + data_share * min(1, data_rungs)
    most = 1 + rank_share * rank_rungs + data_share * data_rungs
    return fewest * seeds, (fewest + most) / 2 * seeds, most * seeds


def _speeds(batch: Batch, status: BatchStatus) -> _Speeds:
    config = batch.config
    sources = []
    teacher_s = config.costs.teacher_s_per_image
    train_s = config.costs.train_s_per_image
    measured = [_json(batch, keys.pairs_status(row.concept)) for row in status.rows if row.pairs][:8]
    made = sum(count for record in measured for count in record.get("counts", {}).values())
    spent = sum(record.get("seconds", 0.0) for record in measured)
    if made and spent:
        teacher_s = spent / made
        sources.append(f"teacher: {teacher_s:.3f} s an image, measured on this storage")
    elif teacher_s:
        sources.append(f"teacher: {teacher_s:.3f} s an image, from costs.teacher_s_per_image")
    else:
        teacher_s, source = _teacher_table(config)
        sources.append(f"teacher: {teacher_s:.3f} s an image, {source}")
    base_s, adapt_s = (train_s, train_s * ADAPT_SHARE) if train_s else (0.0, 0.0)
    work_s = _stages(batch).get("base", {}).get("work_s", 0.0)
    if _stages(batch).get("base", {}).get("state") == "done" and work_s > 10:
        base_s = work_s / config.base.train.images
        adapt_s = base_s * ADAPT_SHARE
        sources.append(f"training: {base_s:.3f} s an image, measured on this storage")
    elif train_s:
        sources.append(f"training: {train_s:.3f} s an image, from costs.train_s_per_image")
    else:
        base_s, source = _train_table(config, on_gpu=config.base.worker_gpus > 0)
        adapt_s = _train_table(config, on_gpu=config.search.worker_gpus > 0)[0] * ADAPT_SHARE
        sources.append(f"training: {base_s:.4f} s an image, {source}")
    return _Speeds(teacher_s, base_s, adapt_s, sources)


def _teacher_table(config: RunConfig) -> tuple[float, str]:
    """Seconds per edit from the table, and what the table's row is."""
    teacher = config.teacher
    if teacher.model == "bundled":
        return TEACHER_S_PER_IMAGE * (config.pairs.resolution / 128) ** 2, "table, bundled teacher on one CPU core"
    share = (teacher.steps or GPU_TEACHER_STEPS) / GPU_TEACHER_STEPS
    share *= ((teacher.resolution or GPU_TEACHER_PX) / GPU_TEACHER_PX) ** 2
    return GPU_TEACHER_S_PER_IMAGE * share, "table, Stable Diffusion 1.5 on one H200; or set costs.teacher_s_per_image"


def _train_table(config: RunConfig, on_gpu: bool) -> tuple[float, str]:
    """Seconds per training image from the table, and what the table's row is."""
    width, side = config.nets.width, config.pairs.resolution
    if on_gpu:
        scale = (width / GPU_REFERENCE_WIDTH) ** 2 * (side / GPU_REFERENCE_PX) ** 2
        # Small networks keep no GPU busy: half of the step's time remains.
        return GPU_TRAIN_S_PER_IMAGE * max(0.5, scale), "table, one H200"
    return TRAIN_S_PER_IMAGE * (width / REFERENCE_WIDTH) ** 2 * (side / REFERENCE_PX) ** 2, "table, one CPU core"


def _wall(config: RunConfig, rows: Sequence[PlanRow], workers: int) -> Range:
    base = rows[0].seconds.scaled(1 / config.base.num_workers / 3600)
    rest = _sum(row.seconds for row in rows[1:]).scaled(1 / workers / 3600)
    return base + rest


def _generator_bytes(config: RunConfig) -> float:
    """fp32 bytes of a generator; 9.55 M parameters at width 64 (docs/base.md)."""
    return 9.55e6 * 4 * (config.nets.width / 64) ** 2


def _version_bytes(config: RunConfig) -> float:
    merged = sum(1 for name in config.publish.formats if name.startswith("merged") or name in ("ort", "coreml"))
    return merged * _generator_bytes(config) + 2 * MB


def _stages(batch: Batch) -> dict[str, dict[str, float]]:
    return _json(batch, keys.run_status(batch.fingerprint, "stages.json"))


def _price_s(config: RunConfig) -> float:
    return config.costs.machine_per_hour / 3600


def _json(batch: Batch, key: str) -> dict:
    try:
        return json.loads(batch.store.get(key))
    except KeyError:
        return {}


def _sum(ranges: Iterable[Range]) -> Range:
    total = Range(0, 0, 0)
    for item in ranges:
        total = total + item
    return total
