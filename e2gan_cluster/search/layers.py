"""Which parts of a base are worth adapting, and with what rank (E2GAN 3.3, "crucial layers").

On a few probe concepts, one part at a time is adapted alone (or all but one, as E2GAN), briefly. What the metric gains
per LoRA weight decides the adapted parts and their start ranks. The table and a picture are stored with the base and
used by every search on it; probes have records, so a killed analysis goes on.

Example:
    >>> table = ensure_layers(config, store, base_id, concepts, reporter, tracker, serve_here)
    >>> table.parts, table.factors
    (('downsample', 'us', 'upsample'), {'downsample': 2, 'us': 1, 'upsample': 4})
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import TrainingError
from e2gan_cluster.progress import Reporter
from e2gan_cluster.search.jobs import Job, Serve
from e2gan_cluster.search.ladder import Wait
from e2gan_cluster.search.layer_table import PICTURE, TABLE, LayerTable, PartRow, choose_parts, load_layers
from e2gan_cluster.search.settings import SearchSetting, absolute_root, concept_from_json, concept_to_json
from e2gan_cluster.search.tracking import log_layers
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore

if TYPE_CHECKING:
    from e2gan_cluster.track.mlflow_tracker import NullTracker, Tracker

TASK = "layers"
BASE, ALL = "base", "all"


def ensure_layers(
    config: RunConfig,
    store: ObjectStore,
    base_id: str,
    concepts: Sequence[Concept],
    reporter: Reporter,
    tracker: "Tracker | NullTracker",
    serve: Serve,
) -> LayerTable:
    """The layer table of a base: stored, or made now from probes on the first usable concepts.

    With ``search.crucial_parts`` given nothing is probed: the table then only lists the layers.

    Args:
        config: Resolved config.
        store: Base, pairs, table.
        base_id: The base.
        concepts: Candidates for probes, with finished pairs; spread over the list.
        reporter: Gets progress.
        tracker: Gets the table.
        serve: Runs the probes; not called if the table is stored.

    Raises:
        TrainingError: No probe concept could be trained.
        UserError: The base is missing or damaged.
    """
    table = load_layers(store, base_id)
    if table is not None and (table.mode != "given" or config.search.crucial_parts is not None):
        return table
    rows = _layout(store, base_id, config.search.start_rank)
    if config.search.crucial_parts is not None:
        parts = tuple(row.part for row in rows)
        table = LayerTable(base_id, rows, parts, dict.fromkeys(parts, 1), config.search.start_rank)
        store.put(keys.layers_file(base_id, TABLE), table.to_json())
        return table
    table = analyse_layers(config, store, base_id, rows, concepts, reporter, serve)
    store.put(keys.layers_file(base_id, TABLE), table.to_json())
    store.put(keys.layers_file(base_id, PICTURE), picture_png(table))
    log_layers(tracker, store, table)
    return table


def analyse_layers(
    config: RunConfig,
    store: ObjectStore,
    base_id: str,
    rows: Sequence[PartRow],
    concepts: Sequence[Concept],
    reporter: Reporter,
    serve: Serve,
) -> LayerTable:
    """Probe every part on ``search.probe_concepts`` concepts and derive the adapted set.

    Raises:
        TrainingError: Every probe concept failed; gives the reasons.
    """
    search = config.search
    source = ProbeSource(store, base_id, config, rows, _spread(concepts, search.probe_concepts), reporter)
    setting = SearchSetting(config, absolute_root(store.url), base_id, {})
    reporter.start(TASK, source.total, "probes")
    serve(source, partial(probe_runner, setting=setting))
    reporter.finish(TASK)
    usable = [name for name in source.names if name not in source.failures]
    if not usable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in source.failures.items())
        raise TrainingError(f"no probe concept could be trained: {reasons or 'none was given'}", "see docs/adapt.md")
    gains, means = source.gains(usable)
    measured = tuple(PartRow(row.part, row.layers, row.parameters, means[row.part], gains[row.part]) for row in rows)
    parts, factors = choose_parts(measured, search.keep_parts)
    return LayerTable(
        base_id, measured, parts, factors, search.start_rank, search.metric, means[BASE], means[ALL],
        search.probe_mode, tuple(usable), search.probe_images,
    )  # fmt: skip


class ProbeSource:
    """A `JobSource`: per probe concept the base as it is, all parts, and each part."""

    def __init__(
        self,
        store: ObjectStore,
        base_id: str,
        config: RunConfig,
        rows: Sequence[PartRow],
        concepts: Sequence[Concept],
        reporter: Reporter,
    ) -> None:
        self._rows, self._config, self._reporter = rows, config, reporter
        self.names = [concept.name for concept in concepts]
        self.failures: dict[str, str] = {}
        self._metrics: dict[tuple[str, str], float] = {}
        parts = [BASE, ALL, *(row.part for row in rows)]
        self._queue = [self._job(base_id, concept, part) for concept in concepts for part in parts]
        self.total = len(self._queue)

    def next(self) -> Job | Wait | None:
        """The next probe."""
        while self._queue:
            job = self._queue.pop(0)
            if job.payload["concept"]["name"] not in self.failures:
                return job
        return None

    def progress(self, job: Job, row: Mapping[str, Any]) -> None:
        """Nothing to decide."""

    def report(self, job: Job, outcome: Mapping[str, Any]) -> None:
        """Note a probe's metric."""
        self._metrics[job.payload["concept"]["name"], job.payload["part"]] = float(outcome["metric"])
        self._reporter.update(TASK, len(self._metrics), probe=job.name, metric=float(outcome["metric"]))

    def fail(self, job: Job, reason: str) -> None:
        """Leave the concept out."""
        self.failures[job.payload["concept"]["name"]] = reason
        self._reporter.note(f"probe concept {job.payload['concept']['name']} failed: {reason}")

    def gains(self, usable: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
        """Gain of each part as a share of the base's metric, and mean metric of every probe.

        Raises:
            TrainingError: The analysis was stopped before its end.
        """
        parts = [row.part for row in self._rows]
        if any((name, part) not in self._metrics for name in usable for part in (BASE, ALL, *parts)):
            raise TrainingError("the layer analysis was stopped before its end", "run the same command again")
        means = {p: sum(self._metrics[n, p] for n in usable) / len(usable) for p in (BASE, ALL, *parts)}

        def gain(name: str, part: str) -> float:
            base, value = self._metrics[name, BASE], self._metrics[name, part]
            won = base - value if self._config.search.probe_mode == "alone" else value - self._metrics[name, ALL]
            return won / max(abs(base), 1e-9)

        return {p: max(0.0, sum(gain(n, p) for n in usable) / len(usable)) for p in parts}, means

    def _job(self, base_id: str, concept: Concept, part: str) -> Job:
        search = self._config.search
        adapted = {BASE: [], ALL: [row.part for row in self._rows]}.get(part, [part])
        if search.probe_mode == "without" and part not in (BASE, ALL):
            adapted = [row.part for row in self._rows if row.part != part]
        layers = [name for row in self._rows if row.part in adapted for name in row.layers]
        payload = {"part": part, "concept": concept_to_json(concept), "layers": layers, "base_id": base_id}
        return Job(f"{concept.name} {part}", payload)


def probe_runner(job: Job, setting: SearchSetting) -> Iterator[Mapping[str, Any]]:
    """Runs one probe, or reads its record (see `jobs.Runner`)."""
    from e2gan_cluster.search.training import AdapterTraining
    from e2gan_cluster.search.worker import warm_worker

    warm, search = warm_worker(setting), setting.config.search
    key = keys.layers_file(setting.base_id, f"probe-{_probe_id(job, setting)}.json")
    try:
        yield {"outcome": json.loads(warm.store.get(key))}
        return
    except KeyError:
        data = warm.concept(concept_from_json(job.payload["concept"]))
    if job.payload["layers"]:
        # Constant rate: a probe compares parts early in training, it does not finish one.
        update = {"images": search.probe_images, "decay_from": 1.0}
        if search.discriminator == "none":
            update["loss"] = search.train.loss.model_copy(update={"gan_weight": 0.0})
        training = AdapterTraining(
            warm,
            data,
            size=max(data.rungs),
            ranks=dict.fromkeys(job.payload["layers"], search.start_rank),
            cfg=search.train.model_copy(update=update),
            seed=setting.config.seed,
        )
        for images in training.until(1.0):
            yield {"images": images}
        metric = training.evaluate(1.0)
    else:
        metric = warm.measure(warm.base.generator, data)
    record = {"metric": metric, "concept": job.payload["concept"]["name"], "part": job.payload["part"]}
    warm.store.put_new(key, json.dumps(record).encode())
    yield {"outcome": record}


def _probe_id(job: Job, setting: SearchSetting) -> str:
    search = setting.config.search
    decides = {
        "job": job.payload, "images": search.probe_images, "rank": search.start_rank, "metric": search.metric,
        "train": search.train.model_dump(mode="json"), "seed": setting.config.seed, "photos": search.eval_photos,
        "sizes": search.data_sizes, "subset": search.subset, "discriminator": search.discriminator,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _layout(store: ObjectStore, base_id: str, rank: int) -> tuple[PartRow, ...]:
    """Parts of the base's generator, their layers, and the size of their LoRA."""
    from e2gan_cluster.nn.generator import PARTS
    from e2gan_cluster.nn.lora import adaptable_layers, lora_size
    from e2gan_cluster.train.base_store import load_base

    generator = load_base(store, base_id).generator
    layers = {part: adaptable_layers(generator, [part]) for part in PARTS}
    sizes = {part: lora_size(generator, dict.fromkeys(names, rank)) for part, names in layers.items()}
    return tuple(PartRow(part, tuple(names), sizes[part]) for part, names in layers.items())


def _spread(concepts: Sequence[Concept], count: int) -> list[Concept]:
    """So many concepts, evenly over the list."""
    count = min(count, len(concepts))
    return [concepts[i * len(concepts) // count] for i in range(count)]


def picture_png(table: LayerTable) -> bytes:
    """Bars: gain of each part, and gain per 1,000 weights; adapted parts dark."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [row.part for row in table.rows]
    colours = ["#1f4e79" if name in table.parts else "#b8c4d0" for name in names]
    left.barh(names, [100 * row.gain for row in table.rows], color=colours)
    left.set(xlabel=f"{table.metric_name}: gain, % of the base's", title=f"base {table.base_id}, {table.mode}")
    right.barh(names, [100 * row.gain_per_1000 for row in table.rows], color=colours)
    right.set(xlabel="gain per 1,000 LoRA weights, %", title=f"rank {table.rank}, {table.images} images")
    right.tick_params(labelleft=False)
    for axes in (left, right):
        axes.invert_yaxis()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
