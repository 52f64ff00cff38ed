"""One adapter's files for devices, each proven equal to torch before it may be published.

Example:
    >>> result = export_adapter(base, base_export, adapter_files, tokens_TD, ["onnx-adapter"], workdir / "oil", photos)
    >>> result.files["adapter.onnx_adapter"].stat().st_size
    198144
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from e2gan_cluster.errors import BaseMismatchError, InputError
from e2gan_cluster.evaluate.inference import to_signed
from e2gan_cluster.evaluate.metrics import MetricNets
from e2gan_cluster.export import coreml, names, precision
from e2gan_cluster.export.base_export import MAX_ERROR, BaseExport, BaseLike, fitted, graph_meta, open_session
from e2gan_cluster.export.factors import Factors, effect_tensors, read_factors, tensor_file
from e2gan_cluster.export.folding import HalfPrecision, OneEffect, merge
from e2gan_cluster.export.graph import image_axes, image_example, save_graph, to_onnx, with_effect
from e2gan_cluster.export.halves import to_half
from e2gan_cluster.export.ort_file import save_ort
from e2gan_cluster.export.parity import (
    MIN_PSNR_DB,
    Parity,
    Probe,
    measure,
    reasons_to_drop,
    require_exact,
    require_found_again,
)
from e2gan_cluster.export.runtime import run_graph


@dataclass(frozen=True)
class ExportResult:
    """Device files of one concept.

    Attributes:
        files: Path by file name; every one passed its parity check, but for `unchecked`.
        parity: Measurement by file name (files that were dropped too).
        sizes: Bytes by file name.
        skipped: Reason by file name, for lower precisions whose quality did not hold.
    """

    files: dict[str, Path]
    parity: dict[str, Parity]
    sizes: dict[str, int]
    skipped: dict[str, str]

    @property
    def unchecked(self) -> list[str]:
        """Files that could not be run where they were made."""
        return sorted(set(self.files) - set(self.parity))

    def meta(self) -> dict[str, Any]:
        """What the adapter's manifest says about its exports."""
        return {
            "format_version": names.FORMAT_VERSION,
            "opset": names.OPSET,
            "parity": {name: parity.to_dict() for name, parity in self.parity.items()},
            "skipped": self.skipped,
            "unchecked": self.unchecked,
        }


def export_adapter(
    base: BaseLike,
    base_export: BaseExport,
    adapter_files: Mapping[str, bytes],
    tokens_TD: np.ndarray,
    formats: Sequence[names.Format],
    workdir: Path,
    photos_NHWC: np.ndarray,
    *,
    references_NHWC: np.ndarray | None = None,
    metrics: Sequence[str] = (),
    nets: MetricNets | None = None,
    search_metrics: Mapping[str, float] | None = None,
    tolerance: float = 0.02,
    max_error: float = MAX_ERROR,
) -> ExportResult:
    """Exports one adapter in the formats asked and checks each against torch.

    Args:
        base: Loaded base.
        base_export: Its device files.
        adapter_files: ``adapter_model.safetensors`` and ``adapter_config.json`` of PEFT.
        tokens_TD: The encoded prompt, float32; padding rows are zero.
        formats: Formats to make.
        workdir: Folder for the files.
        photos_NHWC: Held-out photos, uint8, for parity and calibration.
        references_NHWC: The teacher's edits of these photos, to recompute ``metrics``.
        metrics: Names of metrics to recompute.
        nets: Networks of the metrics, and of LPIPS for fp16 and int8; loaded here if not given.
        search_metrics: What the search measured on these photos; every fp32 file must score it again. Not compared
            where the graph's fixed size is not that of the photos.
        tolerance: Relative difference of a metric that the search takes for noise.
        max_error: Largest allowed difference of an fp32 file, in [-1, 1].

    Returns:
        Files, parity, sizes. A lower precision whose quality does not hold is in ``skipped`` only.

    Raises:
        BaseMismatchError: The adapter belongs to another base or has a layer that the base's graph lacks.
        ExportError: An fp32 file differs from torch or from the search; nothing of the concept may be published.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    for name in names.FORMAT_FILES.values():
        (workdir / name).unlink(missing_ok=True)
    factors = read_factors(adapter_files)
    _check_fit(base_export, adapter_files, factors)
    merged = merge(base.generator, factors)
    text_BTD = effect_tensors(factors, tokens_TD)[names.TEXT]
    full_text = torch.from_numpy(np.asarray(tokens_TD, np.float32)[None])
    side = base_export.resolution
    references_NHWC = None if references_NHWC is None else fitted(references_NHWC, side)
    nets = nets or MetricNets.load([*metrics, *(["lpips"] if set(MIN_PSNR_DB) & set(formats) else [])])
    probe = Probe.of(lambda x: merged(x, full_text), fitted(photos_NHWC, side), references_NHWC, metrics, nets)
    found_again = search_metrics if search_metrics and (side or photos_NHWC.shape[1]) == photos_NHWC.shape[1] else {}
    job = _Job(
        base_export, factors, tokens_TD, OneEffect(merged, text_BTD), workdir, probe, max_error, found_again, tolerance
    )
    result = ExportResult({}, {}, {}, {})
    for fmt in dict.fromkeys(formats):
        _MAKERS[fmt](job, result)
    result.sizes.update({name: path.stat().st_size for name, path in result.files.items()})
    return result


@dataclass(frozen=True)
class _Job:
    """Everything one adapter's exports share."""

    base_export: BaseExport
    factors: Mapping[str, Factors]
    tokens_TD: np.ndarray
    module: OneEffect
    workdir: Path
    probe: Probe
    max_error: float
    search_metrics: Mapping[str, float]
    tolerance: float

    def path(self, fmt: names.Format) -> Path:
        return self.workdir / names.FORMAT_FILES[fmt]

    def merged_onnx(self) -> Path:
        """The fp32 merged graph, made once."""
        path = self.path("merged")
        if not path.exists():
            inputs = onnx.load(self.base_export.files[names.BASE_INPUTS_ONNX])
            model = with_effect(inputs, effect_tensors(self.factors, self.tokens_TD, self.base_export.layers))
            save_graph(model, path, graph_meta(self.base_export.base_id, "merged"))
        return path


def _make_adapter(job: _Job, result: ExportResult) -> None:
    path = job.path("onnx-adapter")
    write_onnx_adapter(effect_tensors(job.factors, job.tokens_TD), job.base_export.base_id, path)
    _keep_exact(job, result, path, adapter_runner(job.base_export.files[names.BASE_ONNX], path))


def _make_adapter_fp16(job: _Job, result: ExportResult) -> None:
    base = job.base_export.files.get(names.BASE_FP16_ONNX)
    if base is None:
        raise InputError(
            f"base {job.base_export.base_id} was published without {names.BASE_FP16_ONNX}",
            "leave onnx-adapter-fp16 out of publish.formats, or publish to another storage",
        )
    path = job.path("onnx-adapter-fp16")
    tensors = effect_tensors(job.factors, job.tokens_TD)
    write_onnx_adapter({n: to_half(value, n) for n, value in tensors.items()}, job.base_export.base_id, path)
    _keep_if_good(job, result, "onnx-adapter-fp16", path, adapter_runner(base, path))


def _make_required_inputs(job: _Job, result: ExportResult) -> None:
    path = job.path("required-inputs")
    tensors = effect_tensors(job.factors, job.tokens_TD, job.base_export.layers)
    metadata = {names.META_FORMAT: str(names.FORMAT_VERSION), names.META_BASE: job.base_export.base_id}
    path.write_bytes(tensor_file(tensors, metadata))
    session = open_session(job.base_export.files[names.BASE_INPUTS_ONNX])
    _keep_exact(job, result, path, lambda x: run_graph(session, {names.IMAGE: x, **tensors}))


def _make_merged(job: _Job, result: ExportResult) -> None:
    path = job.merged_onnx()
    _keep_exact(job, result, path, runner(path))


def _make_ort(job: _Job, result: ExportResult) -> None:
    path = save_ort(job.merged_onnx(), job.path("ort"))
    _keep_exact(job, result, path, runner(path))


def _make_fp16(job: _Job, result: ExportResult) -> None:
    side = job.base_export.resolution
    model = to_onnx(HalfPrecision(job.module), (image_example(side),), (image_axes(side),), [names.IMAGE])
    path = save_graph(
        with_effect(model, {}), job.path("merged-fp16"), graph_meta(job.base_export.base_id, "merged-fp16")
    )
    _keep_if_good(job, result, "merged-fp16", path, runner(path))


def _make_int8(job: _Job, result: ExportResult) -> None:
    merged = job.merged_onnx()
    photos = [to_signed(photo_HWC[None]).numpy() for photo_HWC in job.probe.photos_NHWC]
    path = precision.to_int8(merged, job.path("merged-int8"), photos, precision.edge_convolutions(merged))
    _keep_if_good(job, result, "merged-int8", path, runner(path))


def _make_coreml(job: _Job, result: ExportResult) -> None:
    path = coreml.save_mlpackage(job.module, job.path("coreml"), job.base_export.resolution)
    result.files[path.name] = path


_MAKERS: dict[names.Format, Callable[[_Job, ExportResult], None]] = {
    "onnx-adapter": _make_adapter,
    "onnx-adapter-fp16": _make_adapter_fp16,
    "required-inputs": _make_required_inputs,
    "merged": _make_merged,
    "merged-fp16": _make_fp16,
    "merged-int8": _make_int8,
    "ort": _make_ort,
    "coreml": _make_coreml,
}


def _keep_exact(job: _Job, result: ExportResult, path: Path, run: Callable[[np.ndarray], np.ndarray]) -> None:
    parity = measure(run, job.probe)
    require_exact(path.name, parity, job.max_error)
    require_found_again(path.name, parity, job.search_metrics, job.tolerance)
    result.parity[path.name] = parity
    result.files[path.name] = path


def _keep_if_good(
    job: _Job, result: ExportResult, fmt: names.Format, path: Path, run: Callable[[np.ndarray], np.ndarray]
) -> None:
    parity = measure(run, job.probe, lpips=True)
    result.parity[path.name] = parity
    reasons = reasons_to_drop(fmt, parity, job.tolerance)
    if reasons:
        result.skipped[path.name] = "; ".join(reasons)
    else:
        result.files[path.name] = path


def write_onnx_adapter(tensors: Mapping[str, np.ndarray], base_id: str, path: Path) -> Path:
    """Writes an effect in ONNX Runtime's adapter format.

    Args:
        tensors: Values by graph input name.
        base_id: Base of the effect; its first 28 bits become the file's model version.
        path: File to write.
    """
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(names.FORMAT_VERSION)
    adapter.set_model_version(names.model_version(base_id))
    values = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in sorted(tensors.items())}
    adapter.set_parameters(values)
    adapter.export_adapter(str(path))  # pyright: ignore[reportArgumentType]
    return path


def runner(path: Path, threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """A function that runs a file whose only input is the image."""
    session = open_session(path, threads)
    return lambda x: run_graph(session, {names.IMAGE: x})


def adapter_runner(base: Path, adapter: Path, threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """A function that runs a base with an adapter."""
    session, lora, options = open_session(base, threads), ort.LoraAdapter(), ort.RunOptions()
    lora.Load(str(adapter))
    options.add_active_adapter(lora)
    return lambda x, lora=lora: run_graph(session, {names.IMAGE: x}, options)  # the options do not keep the adapter


def _check_fit(base_export: BaseExport, files: Mapping[str, bytes], factors: Mapping[str, Factors]) -> None:
    theirs = json.loads(files["adapter_config.json"]).get("base_model_name_or_path")
    if theirs != base_export.base_id:
        raise BaseMismatchError(
            f"the adapter belongs to base {theirs}, the exported base is {base_export.base_id}",
            "export it with the base it was trained on",
        )
    missing = sorted(set(factors) - set(base_export.layers))
    if missing:
        raise BaseMismatchError(
            f"the base was exported without inputs for {', '.join(missing)}",
            "export the base with all layers that its adapters change",
        )
