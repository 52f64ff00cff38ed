"""From a finished search to a published version: model card, exports with parity checks, registry.

Example: ``e2gan run --config configs/demo.yaml --stage publish``
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2gan_cluster import __version__
from e2gan_cluster.batch import Batch
from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import UserError
from e2gan_cluster.progress import Reporter
from e2gan_cluster.search.jobs import Job, Serve
from e2gan_cluster.search.ladder import Wait
from e2gan_cluster.search.settings import concept_from_json, concept_to_json
from e2gan_cluster.storage import keys, open_store
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.storage.bundle import find_manifest, read_bundle
from e2gan_cluster.storage.registry import publish_adapter, read_manifest, resolve

if TYPE_CHECKING:
    from e2gan_cluster.export.adapter_export import ExportResult
    from e2gan_cluster.export.base_export import BaseExport
    from e2gan_cluster.search.records import ConceptResult
    from e2gan_cluster.text.encoder import PromptEncoder
    from e2gan_cluster.train.base_store import Base

OUTPUTS = "outputs.png"
"""A strip of the adapter's outputs on the first held-out photos, for overviews."""

PUBLISHED = "published.json"
TASK = "publish"

COREML = "merged.mlpackage.zip"
NOT_RUN = (
    f"{COREML} is not compared with torch: Core ML predicts on Apple devices only. Try it on a device before release."
)


def publish_batch(
    batch: Batch, base_id: str, results: Mapping[str, "ConceptResult"], reporter: Reporter, serve: Serve
) -> tuple[dict[str, str], dict[str, str]]:
    """Publish every finished pick that is not published yet, one job per concept.

    Args:
        batch: Config and storage.
        base_id: The base of all ``results``.
        results: Finished searches by concept.
        reporter: Gets progress.
        serve: Runs the jobs; not called if all is published.

    Returns:
        Versions by concept, and reasons by concept that could not be published.
    """
    versions: dict[str, str] = {}
    pending: list[Concept] = []
    for concept in batch.new:
        if concept.name in results:
            version = _published(batch, results[concept.name])
            if version is None:
                pending.append(concept)
            else:
                versions[concept.name] = version
    if not pending:
        return versions, {}
    publish_base_files(batch.config, batch.store, base_id)
    if "coreml" in batch.config.publish.formats:
        reporter.note(f"publish: {NOT_RUN}")
    reporter.start(TASK, len(pending), "concepts")
    source = PublishSource(pending, results, reporter)
    serve(source, partial(publish_runner, config=batch.config, fingerprint=batch.fingerprint))
    versions |= source.versions
    reporter.finish(TASK, f"{len(versions)} versions, {len(source.failed)} failed")
    return versions, source.failed


class PublishSource:
    """A `JobSource`: one job per concept whose pick is to be published.

    Attributes:
        versions: Published versions by concept.
        failed: Reasons by concept that could not be published.
    """

    def __init__(self, concepts: Sequence[Concept], results: Mapping[str, "ConceptResult"], reporter: Reporter) -> None:
        self._queue = [
            Job(concept.name, {"concept": concept_to_json(concept), "result": results[concept.name].to_json().decode()})
            for concept in concepts
        ]
        self._reporter = reporter
        self.versions: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def next(self) -> Job | Wait | None:
        """The next concept."""
        return self._queue.pop(0) if self._queue else None

    def progress(self, job: Job, row: Mapping[str, Any]) -> None:
        """Nothing to decide."""

    def report(self, job: Job, outcome: Mapping[str, Any]) -> None:
        """Note a version."""
        self.versions[job.name] = str(outcome["version"])
        self._ended(job)

    def fail(self, job: Job, reason: str) -> None:
        """Leave the concept out; the others go on."""
        self.failed[job.name] = reason
        self._reporter.note(f"concept {job.name} was not published: {reason}")
        self._ended(job)

    def _ended(self, job: Job) -> None:
        self._reporter.update(TASK, len(self.versions) + len(self.failed), concept=job.name)


def publish_runner(job: Job, config: RunConfig, fingerprint: str) -> Iterator[Mapping[str, Any]]:
    """Publishes one concept (see `jobs.Runner`)."""
    from e2gan_cluster.search.records import ConceptResult

    concept = concept_from_json(job.payload["concept"])
    result = ConceptResult.parse(job.payload["result"].encode())
    yield {"outcome": {"version": publish_concept(config, fingerprint, concept, result)}}


def publish_concept(config: RunConfig, fingerprint: str, concept: Concept, result: "ConceptResult") -> str:
    """Export one concept's pick, prove the files equal to torch, publish, move the channel.

    Returns:
        The version.

    Raises:
        UserError: An export differs from torch, or storage refuses.
    """
    store = open_store(config.storage)
    base, base_export = _warm_base(config.storage, result.base_id)
    adapter = _adapter_files(store, result)
    with tempfile.TemporaryDirectory(prefix="e2gan-export-") as folder:
        tokens, prompt_file = _prompt(config, concept)
        exported, outputs = _export(config, store, concept, result, base, base_export, adapter, tokens, Path(folder))
        files: dict[str, bytes] = {
            **adapter,
            "prompt.safetensors": prompt_file,
            "samples.png": store.get(keys.search_file(concept.name, result.fingerprint, "samples.png")),
            **{name: path.read_bytes() for name, path in exported.files.items()},
        }
    files["README.md"] = model_card(config, concept, result, exported.sizes).encode()
    meta = _meta(config, fingerprint, concept, result) | {"export": exported.meta()}
    sign_key = Path(config.publish.sign_key) if config.publish.sign_key else None
    version = publish_adapter(store, concept.name, files, meta, config.publish.channel, sign_key)
    store.put(keys.search_file(concept.name, result.fingerprint, OUTPUTS), outputs)
    record = json.dumps({"version": version, "channel": config.publish.channel}).encode()
    store.put(keys.search_file(concept.name, result.fingerprint, PUBLISHED), record)
    return version


def begin_base_files(config: RunConfig, store: ObjectStore, base_id: str) -> Callable[[], None]:
    """Starts `publish_base_files` as a Ray task, beside what the caller does next; Ray must run.

    Returns:
        Waits for its end. Says nothing of a failure: `publish_batch` tries again, and meets it itself.
    """
    import ray

    if find_manifest(store, keys.mobile_file(base_id, "")) is not None:
        return lambda: None
    task = ray.remote(num_cpus=0)(_base_files).remote(config, base_id)

    def wait() -> None:
        ray.wait([task])

    return wait


def _base_files(config: RunConfig, base_id: str) -> None:
    publish_base_files(config, open_store(config.storage), base_id)


def publish_base_files(config: RunConfig, store: ObjectStore, base_id: str) -> None:
    """Export the base for devices, once, and compare it with torch.

    Raises:
        UserError: The exported graph is refused by a checker, or differs from torch.
    """
    from e2gan_cluster.export.base_files import ensure_base_export
    from e2gan_cluster.nn.lora import adaptable_layers
    from e2gan_cluster.search.layer_table import load_layers
    from e2gan_cluster.train.base_store import load_base

    if find_manifest(store, keys.mobile_file(base_id, "")) is not None:
        return
    base = load_base(store, base_id)
    table = load_layers(store, base_id)
    parts = config.search.crucial_parts or (table.parts if table else None)
    layers = adaptable_layers(base.generator, parts) if parts else None
    with tempfile.TemporaryDirectory(prefix="e2gan-base-") as folder:
        publish = config.publish
        ensure_base_export(store, base, layers, Path(folder), publish.resolution, max_error=publish.max_error)


@lru_cache(maxsize=1)
def _warm_base(storage: str, base_id: str) -> tuple["Base", "BaseExport"]:
    """Base and its device files, kept for the life of a worker process."""
    from e2gan_cluster.export.base_export import BaseExport
    from e2gan_cluster.train.base_store import load_base

    store = open_store(storage)
    bundle = read_bundle(store, keys.mobile_file(base_id, ""))
    folder = Path(tempfile.mkdtemp(prefix="e2gan-base-"))
    for name, data in bundle.files.items():
        (folder / name).write_bytes(data)
    return load_base(store, base_id), BaseExport.of(folder, bundle.manifest.meta)


@lru_cache(maxsize=1)
def _warm_encoder(max_tokens: int) -> "PromptEncoder":
    """The text encoder, kept for the life of a worker process."""
    from e2gan_cluster.text.encoder import PromptEncoder

    return PromptEncoder(max_tokens=max_tokens)


def _adapter_files(store: ObjectStore, result: "ConceptResult") -> dict[str, bytes]:
    prefix = result.adapter_key_prefix
    return {file.name: store.get(prefix + file.name, sha256=file.sha256, size=file.size) for file in result.files}


def _prompt(config: RunConfig, concept: Concept) -> tuple[Any, bytes]:
    """The prompt's tokens [T, D], and the file a phone gets instead of a text encoder."""
    from safetensors.numpy import save

    embedding = _warm_encoder(config.nets.text_tokens).encode([concept.prompt])
    tokens, pooled = embedding.tokens_BTD[0].numpy(), embedding.pooled_BD[0].numpy()
    return tokens, save({"tokens": tokens, "pooled": pooled})


def _export(
    config: RunConfig,
    store: ObjectStore,
    concept: Concept,
    result: "ConceptResult",
    base: "Base",
    base_export: "BaseExport",
    adapter: Mapping[str, bytes],
    tokens_TD: Any,
    folder: Path,
) -> tuple["ExportResult", bytes]:
    import copy

    import numpy as np

    from e2gan_cluster.evaluate.grids import encode_png
    from e2gan_cluster.evaluate.inference import run_generator
    from e2gan_cluster.export.adapter_export import export_adapter
    from e2gan_cluster.nn.lora import load_adapter
    from e2gan_cluster.pairs.shards import load_pairs
    from e2gan_cluster.search.records import PARITY_PHOTOS

    heldout = load_pairs(store, concept, "heldout", config)
    photos, edits = heldout.inputs_NHWC[:PARITY_PHOTOS], heldout.edits_NHWC[:PARITY_PHOTOS]
    exported = export_adapter(
        base,
        base_export,
        adapter,
        tokens_TD,
        config.publish.formats,
        folder,
        photos,
        references_NHWC=edits,
        metrics=list(result.parity_metrics) or ["lpips"],
        search_metrics=result.parity_metrics,
        tolerance=config.search.tolerance,
        max_error=config.publish.max_error,
    )
    model = load_adapter(copy.deepcopy(base.generator), adapter, base.base_id)
    return exported, encode_png(np.concatenate(run_generator(model, photos, tokens_TD), axis=1))


def _meta(config: RunConfig, fingerprint: str, concept: Concept, result: "ConceptResult") -> dict[str, Any]:
    from e2gan_cluster.teacher.fingerprint import teacher_fingerprint

    return {
        "base_id": result.base_id,
        "batch": config.name,
        "config_fingerprint": fingerprint,
        "code_version": __version__,
        "teacher_fingerprint": teacher_fingerprint(config.teacher),
        "prompt": concept.prompt,
        "tags": list(concept.tags),
        "metrics": result.metrics,
        "base_metrics": result.base_metrics,
        "identity_metrics": result.identity_metrics,
        "data_size": result.data_size,
        "rank_multiplier": result.rank_multiplier,
        "search_fingerprint": result.fingerprint,
        "trials": result.trials,
        "training_images": result.images,
        "training_seconds": round(result.seconds, 1),
        "cost": {
            "value": round(result.seconds / 3600 * config.costs.machine_per_hour, 4),
            "currency": config.costs.currency,
        },
        "licence": config.publish.licence,
        "seed": config.seed,
    }


def model_card(config: RunConfig, concept: Concept, result: "ConceptResult", sizes: Mapping[str, int]) -> str:
    """README.md of a version. Says nothing of time, so that the same work gives the same version.

    Args:
        config: The run's config.
        concept: The edit.
        result: Its finished search.
        sizes: Bytes of each exported file.
    """
    tables = (result.metrics, result.base_metrics, result.identity_metrics)
    metrics = "\n".join(
        " | ".join(["", name, *(_cell(table, name) for table in tables), ""]).strip() for name in sorted(result.metrics)
    )
    ranks = "\n".join(f"| `{layer}` | {rank} |" for layer, rank in sorted(result.ranks.items()))
    exports = "\n".join(f"| `{name}` | {size:,} |" for name, size in sorted(sizes.items()))
    if COREML in sizes:
        exports += f"\n\n{NOT_RUN}"
    return f"""---
library_name: peft
base_model: {json.dumps(result.base_id)}
license: {json.dumps(config.publish.licence)}
tags: {json.dumps(list(concept.tags))}
---

# {concept.name}

Prompt: {json.dumps(concept.prompt, ensure_ascii=False)}

A LoRA adapter (PEFT) on base `{result.base_id}`: rank rung {result.rank_multiplier}x, {result.data_size} pairs,
picked from {result.trials} trials ({result.images:,} training images in all), {result.adapter_bytes:,} bytes.

![photo, teacher, base, rungs](samples.png)

Against the teacher's edits of {result.heldout} held-out photos:

| metric | this adapter | base without it | unchanged photo |
|---|---|---|---|
{metrics}

| layer | rank |
|---|---|
{ranks}

| file | bytes |
|---|---|
{exports}
"""


def _cell(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.4f}" if name in metrics else ""


def _published(batch: Batch, result: "ConceptResult") -> str | None:
    """Version of a pick that is published whole and that the channel points to, or None."""
    key = keys.search_file(result.concept, result.fingerprint, PUBLISHED)
    try:
        version = str(json.loads(batch.store.get(key))["version"])
        if resolve(batch.store, result.concept, batch.config.publish.channel):
            read_manifest(batch.store, result.concept, version)
        return version
    except (KeyError, UserError):
        return None
