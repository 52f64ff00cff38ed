"""The end of a concept's search: measure the pick, draw its pictures, write the result. Nothing is trained again.

Example:
    >>> finish_concept(warm, concept, fingerprint, pick="r2-n100-s0")
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from e2gan_cluster.concepts import Concept
from e2gan_cluster.evaluate.grids import grid_png
from e2gan_cluster.evaluate.inference import run_generator
from e2gan_cluster.evaluate.metrics import evaluate_outputs
from e2gan_cluster.nn.lora import load_adapter
from e2gan_cluster.search.records import PARITY_PHOTOS, ConceptResult, TrialRecord, read_trials
from e2gan_cluster.search.worker import ConceptData, WarmWorker
from e2gan_cluster.storage import keys

METRICS = ("lpips", "l1", "psnr", "ssim")
SET_METRICS = ("kid", "direction")
PARITY_METRICS = ("lpips", "l1")
MIN_PHOTOS_FOR_KID = 100
GRID_ROWS = 6
SAMPLES = "samples.png"
CURVE = "curve.png"


def finish_concept(warm: WarmWorker, concept: Concept, fingerprint: str, pick: str) -> Mapping[str, Any]:
    """Write the result record of a concept whose ladder is done.

    Args:
        warm: The worker.
        concept: The edit.
        fingerprint: Of its search.
        pick: Trial whose adapter is the result.

    Returns:
        ``{"result": JSON}``.

    Raises:
        IntegrityError: A record or the pick's adapter is damaged.
    """
    data = warm.concept(concept)
    trials = read_trials(warm.store, concept.name, fingerprint)
    stored = [record for record in trials.values() if record.files]
    picked = trials[pick]
    heldout = data.heldout
    base_NHWC = run_generator(warm.base.generator, heldout.inputs_NHWC, data.tokens_TD)
    best_NHWC = run_generator(_adapted(warm, picked, fingerprint), heldout.inputs_NHWC, data.tokens_TD)
    columns = _columns(warm, data, stored, fingerprint, base_NHWC)
    prefix = keys.search_trial_adapter(concept.name, fingerprint, pick, "")
    result = ConceptResult(
        concept=concept.name,
        state="done",
        prompt=concept.prompt,
        base_id=warm.setting.base_id,
        fingerprint=fingerprint,
        pick=pick,
        rank_multiplier=picked.spec.multiplier,
        ranks=picked.ranks,
        data_size=picked.spec.data_size,
        metric_name=warm.config.search.metric,
        metric=picked.metric,
        metrics=_measure(warm, data, best_NHWC),
        base_metrics=_measure(warm, data, base_NHWC),
        identity_metrics=_measure(warm, data, heldout.inputs_NHWC),
        table=tuple(record.row() for record in _by_rung(list(trials.values()))),
        trials=len(trials),
        seconds=sum(record.seconds for record in trials.values()),
        images=sum(record.images for record in trials.values()),
        adapter_bytes=picked.adapter_bytes,
        adapter_key_prefix=prefix,
        files=picked.files,
        init=picked.spec.init,
        heldout=len(heldout),
        parity_metrics=_parity_metrics(warm, data, best_NHWC),
    )
    warm.store.put(keys.search_file(concept.name, fingerprint, SAMPLES), grid_png(columns, GRID_ROWS))
    warm.store.put(keys.search_file(concept.name, fingerprint, CURVE), curve_png(result))
    key = keys.search_result(concept.name, fingerprint)
    if not warm.store.put_new(key, result.to_json()):
        result = ConceptResult.parse(warm.store.get(key))
    for record in trials.values():
        if record.resume is not None:
            trial = record.spec.trial_id
            warm.store.delete(keys.search_trial_adapter(concept.name, fingerprint, trial, record.resume.name))
    return {"result": result.to_json().decode()}


def _adapted(warm: WarmWorker, record: TrialRecord, fingerprint: str) -> nn.Module:
    """The base with a trial's stored adapter, verified."""
    spec = record.spec
    files = {
        file.name: warm.store.get(
            keys.search_trial_adapter(spec.concept, fingerprint, spec.trial_id, file.name),
            sha256=file.sha256,
            size=file.size,
        )
        for file in record.files
    }
    return load_adapter(warm.generator(), files, warm.setting.base_id).to(warm.device)


def _measure(warm: WarmWorker, data: ConceptData, output_NHWC: np.ndarray) -> dict[str, float]:
    """Metrics on all held-out photos; those on sets only with enough of them. Metrics without a value are left out."""
    wanted = set(METRICS) | {warm.config.search.metric}
    if len(data.heldout) >= MIN_PHOTOS_FOR_KID:
        wanted |= set(SET_METRICS)
    metrics = [name for name in (*METRICS, *SET_METRICS) if name in wanted]
    values = evaluate_outputs(
        data.heldout.inputs_NHWC, data.heldout.edits_NHWC, output_NHWC, metrics, warm.nets(metrics)
    )
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _parity_metrics(warm: WarmWorker, data: ConceptData, output_NHWC: np.ndarray) -> dict[str, float]:
    """Metrics on the few photos on which exported files are tried."""
    photos = data.heldout.take(range(min(PARITY_PHOTOS, len(data.heldout))))
    values = evaluate_outputs(
        photos.inputs_NHWC, photos.edits_NHWC, output_NHWC[: len(photos)], list(PARITY_METRICS),
        warm.nets(list(PARITY_METRICS)),
    )  # fmt: skip
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _by_rung(records: list[TrialRecord]) -> list[TrialRecord]:
    return sorted(records, key=lambda r: (r.spec.until, r.spec.multiplier, r.spec.data_size, r.spec.seed_index))


def _columns(
    warm: WarmWorker, data: ConceptData, stored: list[TrialRecord], fingerprint: str, base_NHWC: np.ndarray
) -> dict[str, np.ndarray]:
    photos = data.heldout.take(range(min(GRID_ROWS, len(data.heldout))))
    columns = {"photo": photos.inputs_NHWC, "teacher": photos.edits_NHWC, "base": base_NHWC[:GRID_ROWS]}
    for record in _by_rung(stored):
        spec = record.spec
        if spec.seed_index == 0:
            generator = _adapted(warm, record, fingerprint)
            label = f"x{spec.multiplier} n{spec.data_size}" + (f" {spec.until:.3g}" if spec.until < 1 else "")
            columns[label] = run_generator(generator, photos.inputs_NHWC, data.tokens_TD)
    return columns


def curve_png(result: ConceptResult) -> bytes:
    """Adapter size against quality, one point per rung after the same share of the training; the finished pick."""
    from matplotlib.figure import Figure

    rows = result.compared
    figure = Figure(figsize=(5, 3.2))
    # By hand: a layout found by drawing everything twice nearly doubles the time.
    axes = figure.add_axes((0.17, 0.16, 0.8, 0.74))
    for size in sorted({row["data_size"] for row in rows}):
        points = sorted((row["adapter_bytes"] / 1000, row["metric"]) for row in rows if row["data_size"] == size)
        axes.plot(*zip(*points, strict=True), marker="o", label=f"{size} pairs")
    axes.plot([result.adapter_bytes / 1000], [result.metric or 0.0], "k*", markersize=14, label="pick", zorder=0)
    axes.set(xlabel="adapter, kB", ylabel=f"{result.metric_name} (lower is better)", title=result.concept)
    part = min(row.get("until", 1.0) for row in rows)
    axes.legend(fontsize=8, title=f"after {100 * part:.3g} % of the training" if part < 1 else None)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
