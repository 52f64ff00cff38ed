"""Measures a batch on held-out photos: unchanged photo, base, adapter, and any other model's outputs, side by side.

Beside them stands the floor: the teacher measured against itself under another seed. No student can be expected to
come closer to a teacher than the teacher does itself.

Example: ``e2gan evaluate --config configs/demo.yaml --concept oil-painting``
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from e2gan_cluster.batch import Batch
from e2gan_cluster.concepts import Concept
from e2gan_cluster.errors import InputError, UserError
from e2gan_cluster.evaluate.grids import encode_png
from e2gan_cluster.evaluate.inference import run_generator
from e2gan_cluster.evaluate.metrics import DEFAULT_METRICS, MetricNets, evaluate_outputs
from e2gan_cluster.pairs.shards import PairSet, load_pairs, pairs_digest
from e2gan_cluster.progress import Reporter
from e2gan_cluster.storage import keys

PHOTO, BASE, ADAPTER = "unchanged photo", "base", "adapter"
# Any other stream of seeds will do; below 2**63 with every seed of a pair.
_OTHER_SEED = 1_000_003


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured.

    Attributes:
        metrics: Names out of `evaluate.metrics.ALL_METRICS`.
        floor: Also measure the teacher against itself under another seed.
        outputs: Label -> folder of another model's outputs, ``<source_id>.png`` per held-out photo, or
            ``<concept>/<source_id>.png``.
        save: Folder that gets photos, references and outputs as PNG, for other models and other eyes.
        inception: TorchScript file for ``fid``.
        clip: Folder or hub id of a CLIP model for ``clip_*``.
        device: Where networks run.
    """

    metrics: Sequence[str] = DEFAULT_METRICS
    floor: bool = True
    outputs: Mapping[str, Path] = field(default_factory=dict)
    save: Path | None = None
    inception: Path | None = None
    clip: str | None = None
    device: str = "cpu"


def evaluate_batch(
    batch: Batch, base_id: str | None, concepts: Sequence[Concept], options: EvaluateOptions, reporter: Reporter
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Measure concepts and keep a record of each under `keys.evaluation`.

    Args:
        batch: The batch.
        base_id: Its base; None = photos, floor and other models' outputs only.
        concepts: Which concepts.
        options: What is measured.
        reporter: Progress.

    Returns:
        Records by concept, and reasons by concept that could not be measured.

    Raises:
        UserError: Metric weights are missing, or the base cannot be loaded.
    """
    bench = _Bench(batch, base_id, options)
    records: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    reporter.start("evaluate", len(concepts), "concepts")
    for done, concept in enumerate(concepts, start=1):
        try:
            records[concept.name] = bench.measure(concept)
        except UserError as error:
            failed[concept.name] = error.message
            reporter.note(f"concept {concept.name} was not measured: {error.message}")
        reporter.update("evaluate", done, concept=concept.name)
    reporter.finish("evaluate", f"{len(records)} measured")
    return records, failed


class _Bench:
    """Networks and data that all concepts share."""

    def __init__(self, batch: Batch, base_id: str | None, options: EvaluateOptions) -> None:
        self.batch, self.base_id, self.options = batch, base_id, options
        self.nets = MetricNets.load(options.metrics, options.device, options.inception, options.clip)

    @cached_property
    def base(self) -> Any:
        from e2gan_cluster.train.base_store import load_base

        assert self.base_id
        return load_base(self.batch.store, self.base_id, self.options.device)

    @cached_property
    def encoder(self) -> Any:
        from e2gan_cluster.text.encoder import PromptEncoder

        return PromptEncoder(max_tokens=self.base.nets.text_tokens)

    @cached_property
    def teacher(self) -> Any:
        from e2gan_cluster.teacher.load import load_teacher

        return load_teacher(self.batch.config.teacher)

    def measure(self, concept: Concept) -> dict[str, Any]:
        """One concept's record, stored."""
        batch, options = self.batch, self.options
        heldout = load_pairs(batch.store, concept, "heldout", batch.config)
        outputs = self._outputs(concept, heldout)
        if options.save:
            _save(options.save / concept.name, heldout, outputs)
        digest = pairs_digest(batch.store, batch.config, concept)
        record = {
            "concept": concept.name,
            "prompt": concept.prompt,
            "base_id": self.base_id or "",
            "pairs": digest,
            "heldout": len(heldout),
            "rows": {label: self._measure(concept, heldout, images) for label, images in outputs.items()},
            "floor": self._floor(concept, heldout, digest),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        key = keys.evaluation(concept.name, batch.fingerprint[:16])
        batch.store.put(key, json.dumps(record, allow_nan=False, indent=1).encode())
        return record

    def _measure(self, concept: Concept, heldout: PairSet, output_NHWC: np.ndarray) -> dict[str, float]:
        return evaluate_outputs(
            heldout.inputs_NHWC, heldout.edits_NHWC, output_NHWC, self.options.metrics, self.nets, prompt=concept.prompt
        )

    def _outputs(self, concept: Concept, heldout: PairSet) -> dict[str, np.ndarray]:
        """Label -> outputs of everything that can be run or read."""
        outputs = {PHOTO: heldout.inputs_NHWC}
        if self.base_id:
            tokens_TD = self.encoder.encode([concept.prompt]).tokens_BTD[0]
            outputs[BASE] = run_generator(self.base.generator, heldout.inputs_NHWC, tokens_TD)
            adapted = self._adapted(concept)
            if adapted is not None:
                outputs[ADAPTER] = run_generator(adapted, heldout.inputs_NHWC, tokens_TD)
        for label, folder in self.options.outputs.items():
            outputs[label] = _read_outputs(folder, concept.name, heldout)
        return outputs

    def _adapted(self, concept: Concept) -> Any:
        """The base with the concept's pick; None if there is no pick."""
        import copy

        from e2gan_cluster.nn.lora import load_adapter
        from e2gan_cluster.search.lookup import find_result

        assert self.base_id
        result = find_result(self.batch.config, self.batch.store, self.base_id, concept)
        if result is None or result.state != "done":
            return None
        files = {
            file.name: self.batch.store.get(result.adapter_key_prefix + file.name, sha256=file.sha256, size=file.size)
            for file in result.files
        }
        return load_adapter(copy.deepcopy(self.base.generator), files, self.base_id).eval()

    def _floor(self, concept: Concept, heldout: PairSet, digest: str) -> dict[str, float]:
        """Metrics between two seeds of the teacher; an earlier record of the same pairs and metrics is used again."""
        if not self.options.floor:
            return {}
        known = _known_floor(self.batch, concept, digest)
        if set(self.options.metrics) <= known.keys():
            return {name: known[name] for name in self.options.metrics}
        seeds = [seed ^ _OTHER_SEED for seed in heldout.seeds]
        step, edits = self.batch.config.teacher.batch_size, []
        for start in range(0, len(heldout), step):
            part = slice(start, start + step)
            photos_NHWC = heldout.inputs_NHWC[part]
            edits.append(
                self.teacher.edit(
                    photos_NHWC,
                    [concept.prompt] * len(photos_NHWC),
                    seeds[part],
                    overrides=concept.teacher,
                    negative_prompt=concept.negative_prompt,
                )
            )
        return self._measure(concept, heldout, np.concatenate(edits))


def _known_floor(batch: Batch, concept: Concept, digest: str) -> dict[str, float]:
    try:
        record = json.loads(batch.store.get(keys.evaluation(concept.name, batch.fingerprint[:16])))
    except (KeyError, ValueError):
        return {}
    return record.get("floor", {}) if record.get("pairs") == digest else {}


def _read_outputs(folder: Path, concept: str, heldout: PairSet) -> np.ndarray:
    """Another model's outputs in the order of the held-out pairs.

    Raises:
        InputError: A file is missing, is no picture, or has another size.
    """
    place = folder / concept if (folder / concept).is_dir() else folder
    fix = "write one PNG per held-out photo; `e2gan evaluate --save DIR` writes the photos under the same names"
    images = []
    for source_id, photo_HWC in zip(heldout.source_ids, heldout.inputs_NHWC, strict=True):
        path = place / f"{source_id}.png"
        try:
            image_HWC = np.asarray(Image.open(path, formats=["PNG"]).convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"output {path} cannot be read: {error}", fix) from error
        if image_HWC.shape != photo_HWC.shape:
            raise InputError(f"output {path} is {image_HWC.shape}, the photo is {photo_HWC.shape}", fix)
        images.append(image_HWC)
    return np.stack(images)


def _save(folder: Path, heldout: PairSet, outputs: Mapping[str, np.ndarray]) -> None:
    """PNG files, one folder per column.

    Raises:
        InputError: A photo's id is no plain name.
    """
    odd = [source_id for source_id in heldout.source_ids if not source_id.isalnum()]
    if odd:
        raise InputError(f"the pairs hold a source id that is no plain name: {odd[0]!a}", "make the pairs again")
    columns = {"photo": heldout.inputs_NHWC, "teacher": heldout.edits_NHWC, **outputs}
    del columns[PHOTO]
    for label, images_NHWC in columns.items():
        place = folder / label
        place.mkdir(parents=True, exist_ok=True)
        for source_id, image_HWC in zip(heldout.source_ids, images_NHWC, strict=True):
            (place / f"{source_id}.png").write_bytes(encode_png(image_HWC))


def evaluation_table(records: Mapping[str, Mapping[str, Any]], show: Callable[[float], str]) -> list[list[str]]:
    """Rows for people: concept, what, one column per metric; the first row is the heading."""
    metrics = list(dict.fromkeys(m for r in records.values() for row in r["rows"].values() for m in row))
    table = [["concept", "what", *metrics]]
    for name, record in records.items():
        lines = {**record["rows"], **({"floor (teacher, other seed)": record["floor"]} if record["floor"] else {})}
        for label, values in lines.items():
            table.append([name, label, *(show(values[m]) if m in values else "" for m in metrics)])
    return table
