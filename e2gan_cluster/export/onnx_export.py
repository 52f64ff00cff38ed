"""Files for devices: once per base, and once per concept, each proven equal to torch before it may be published.

Example:
    >>> base_export = export_base(base, layers, workdir)
    >>> result = export_adapter(base, base_export, adapter_files, tokens_TD, ["onnx-adapter"], workdir / "oil", photos)
    >>> result.files["adapter.onnx_adapter"].stat().st_size
    198144
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
import torch
from safetensors.numpy import save_file
from torch import nn
from torch.export import Dim

from e2gan_cluster.errors import BaseMismatchError, IntegrityError, UserError
from e2gan_cluster.evaluate.inference import to_signed, to_uint8
from e2gan_cluster.evaluate.metrics import MetricNets
from e2gan_cluster.export import coreml, names, precision
from e2gan_cluster.export.factors import Factors, effect_tensors, read_factors
from e2gan_cluster.export.folding import (
    EffectInputs,
    HalfPrecision,
    OneEffect,
    adaptable,
    adaptable_layers,
    check_size,
    matrix_shape,
    merge,
    plain_copy,
)
from e2gan_cluster.export.graph import (
    ExportError,
    free_ranks,
    image_axes,
    image_example,
    mobile_usability,
    save_graph,
    save_ort,
    to_onnx,
    with_defaults,
    with_effect,
)
from e2gan_cluster.export.parity import Parity, Probe, measure, reasons_to_drop, require_exact
from e2gan_cluster.export.runtime import check_format_version, run_graph

MAX_ERROR = 2e-3


class BaseLike(Protocol):
    """What is needed of a loaded base."""

    @property
    def generator(self) -> nn.Module:
        """The generator."""
        ...

    @property
    def base_id(self) -> str:
        """Its id, 12 hex digits."""
        ...


@dataclass(frozen=True)
class BaseExport:
    """Device files of one base.

    Attributes:
        base_id: The base.
        layers: Layers that can carry LoRA -> (outputs, inputs) of their weight.
        resolution: Fixed side, pixels, or None for any multiple of 16.
        files: Path by file name: base.onnx, base-inputs.onnx, base.ort.
        usability: Verdicts of ONNX Runtime's mobile check.
    """

    base_id: str
    layers: dict[str, tuple[int, int]]
    resolution: int | None
    files: dict[str, Path]
    usability: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, meta: Mapping[str, Any]) -> "BaseExport":
        """The export whose published files lie in ``folder``.

        Args:
            folder: Holds the files.
            meta: Facts of their manifest.

        Raises:
            IntegrityError: A fact is missing, or of a later format.
        """
        try:
            check_format_version(int(meta["format_version"]), folder)
            layers = {str(name): (int(shape[0]), int(shape[1])) for name, shape in meta["layers"].items()}
            files = {name: folder / name for name in names.BASE_FILES if (folder / name).is_file()}
            return cls(str(meta["base_id"]), layers, meta["resolution"], files, dict(meta["mobile_usability"]))
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"the manifest of the base's device files lacks {error}", "publish them again"
            ) from error

    def meta(self) -> dict[str, Any]:
        """What the manifest of ``mobile/<base_id>/`` says beside the files."""
        return {
            "format_version": names.FORMAT_VERSION,
            "base_id": self.base_id,
            "opset": names.OPSET,
            "resolution": self.resolution,
            "size_multiple": names.SIZE_MULTIPLE,
            "layers": {name: list(shape) for name, shape in self.layers.items()},
            "mobile_usability": self.usability,
        }


@dataclass(frozen=True)
class ExportResult:
    """Device files of one concept.

    Attributes:
        files: Path by file name; every one passed its parity check.
        parity: Measurement by file name (files that were dropped too).
        sizes: Bytes by file name.
        skipped: Reason by file name, for lower precisions whose quality did not hold.
    """

    files: dict[str, Path]
    parity: dict[str, Parity]
    sizes: dict[str, int]
    skipped: dict[str, str]

    def meta(self) -> dict[str, Any]:
        """What the adapter's manifest says about its exports."""
        return {
            "format_version": names.FORMAT_VERSION,
            "opset": names.OPSET,
            "parity": {name: parity.to_dict() for name, parity in self.parity.items()},
            "skipped": self.skipped,
        }


def export_base(
    base: BaseLike, layers: Sequence[str] | None, workdir: Path, resolution: int | None = None
) -> BaseExport:
    """Exports the base with the LoRA factors of ``layers`` and the prompt as graph inputs.

    Args:
        base: Loaded base.
        layers: Layers that adapters of this base may change; None = all that can carry LoRA.
        workdir: Folder for the files.
        resolution: Fixed side, pixels; None = any multiple of 16.

    Returns:
        base.onnx (factors optional, for ONNX Runtime's adapters), base-inputs.onnx (factors required, for web and
        node) and base.ort.

    Raises:
        InputError: ``resolution`` is not a multiple of 16.
        ExportError: torch or a checker refuses the graph.
    """
    check_size(resolution)
    workdir.mkdir(parents=True, exist_ok=True)
    names_of_layers = sorted(layers) if layers is not None else adaptable_layers(base.generator)
    shapes = {name: matrix_shape(adaptable(base.generator, name)) for name in names_of_layers}
    module = EffectInputs(base.generator, names_of_layers)
    factors = [torch.zeros(p) for o, i in shapes.values() for p in ((2, i), (o, 2))]
    text = torch.ones(1, 5, _text_dim(base.generator))
    model = to_onnx(
        module,
        (image_example(resolution), text, factors),
        (image_axes(resolution), {1: Dim("tokens", min=1, max=4096)}, [{} for _ in factors]),
        [names.IMAGE, names.TEXT, *module.names],
    )
    free_ranks(model, list(shapes))
    meta = _graph_meta(base.base_id, "base") | {names.META_LAYERS: json.dumps(names_of_layers)}
    files = {
        names.BASE_INPUTS_ONNX: save_graph(model, workdir / names.BASE_INPUTS_ONNX, meta),
        names.BASE_ONNX: save_graph(with_defaults(model), workdir / names.BASE_ONNX, meta),
    }
    files[names.BASE_ORT] = save_ort(files[names.BASE_ONNX], workdir / names.BASE_ORT)
    return BaseExport(base.base_id, shapes, resolution, files, mobile_usability(files[names.BASE_INPUTS_ONNX]))


def check_base_export(
    base: BaseLike, export: BaseExport, photos_NHWC: np.ndarray | None = None, max_error: float = MAX_ERROR
) -> dict[str, Parity]:
    """Runs a base's graphs without adapter and compares them with torch.

    Args:
        base: Loaded base.
        export: Its device files.
        photos_NHWC: uint8 photos; None = one of artificial gradients.
        max_error: Largest allowed difference in [-1, 1].

    Returns:
        Parity by file name.

    Raises:
        ExportError: A file differs from torch.
    """
    generator = plain_copy(base.generator)
    tokens_TD = np.random.default_rng(0).standard_normal((5, _text_dim(generator))).astype(np.float32)
    if photos_NHWC is None:
        photos_NHWC = to_uint8(image_example(export.resolution))
    photos = _fitted(photos_NHWC, export.resolution)
    probe = Probe.of(lambda x: generator(x, torch.from_numpy(tokens_TD[None])), photos)
    tensors = effect_tensors({}, tokens_TD, export.layers)
    feeds = {
        name: tensors if name == names.BASE_INPUTS_ONNX else {names.TEXT: tensors[names.TEXT]} for name in export.files
    }
    found = {}
    for name, path in export.files.items():
        session = open_session(path)
        feed = feeds[name]
        found[name] = measure(lambda x, s=session, f=feed: run_graph(s, {names.IMAGE: x, **f}), probe)
        require_exact(name, found[name], max_error)
    return found


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
        max_error: Largest allowed difference of an fp32 file, in [-1, 1].

    Returns:
        Files, parity, sizes. A lower precision whose quality does not hold is in ``skipped`` only.

    Raises:
        BaseMismatchError: The adapter belongs to another base or has a layer that the base's graph lacks.
        ExportError: An fp32 file differs from torch; nothing of the concept may be published.
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
    references_NHWC = None if references_NHWC is None else _fitted(references_NHWC, side)
    nets = nets or MetricNets.load([*metrics, *(["lpips"] if {"merged-fp16", "merged-int8"} & set(formats) else [])])
    probe = Probe.of(lambda x: merged(x, full_text), _fitted(photos_NHWC, side), references_NHWC, metrics, nets)
    job = _Job(base_export, factors, tokens_TD, OneEffect(merged, text_BTD), workdir, probe, max_error)
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

    def path(self, fmt: names.Format) -> Path:
        return self.workdir / names.FORMAT_FILES[fmt]

    def merged_onnx(self) -> Path:
        """The fp32 merged graph, made once."""
        path = self.path("merged")
        if not path.exists():
            inputs = onnx.load(self.base_export.files[names.BASE_INPUTS_ONNX])
            model = with_effect(inputs, effect_tensors(self.factors, self.tokens_TD, self.base_export.layers))
            save_graph(model, path, _graph_meta(self.base_export.base_id, "merged"))
        return path


def _make_adapter(job: _Job, result: ExportResult) -> None:
    path = job.path("onnx-adapter")
    write_onnx_adapter(effect_tensors(job.factors, job.tokens_TD), job.base_export.base_id, path)
    session = open_session(job.base_export.files[names.BASE_ONNX])
    adapter = ort.LoraAdapter()
    adapter.Load(str(path))
    options = ort.RunOptions()
    options.add_active_adapter(adapter)
    _keep_exact(job, result, path, lambda x: run_graph(session, {names.IMAGE: x}, options))


def _make_required_inputs(job: _Job, result: ExportResult) -> None:
    path = job.path("required-inputs")
    tensors = effect_tensors(job.factors, job.tokens_TD, job.base_export.layers)
    save_file(tensors, path, {names.META_FORMAT: str(names.FORMAT_VERSION), names.META_BASE: job.base_export.base_id})
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
        with_effect(model, {}), job.path("merged-fp16"), _graph_meta(job.base_export.base_id, "merged-fp16")
    )
    _keep_if_good(job, result, "merged-fp16", path)


def _make_int8(job: _Job, result: ExportResult) -> None:
    merged = job.merged_onnx()
    photos = [to_signed(photo_HWC[None]).numpy() for photo_HWC in job.probe.photos_NHWC]
    path = precision.to_int8(merged, job.path("merged-int8"), photos, precision.edge_convolutions(merged))
    _keep_if_good(job, result, "merged-int8", path)


def _make_coreml(job: _Job, result: ExportResult) -> None:
    path = coreml.save_mlpackage(job.module, job.path("coreml"), job.base_export.resolution)
    result.files[path.name] = path


_MAKERS: dict[names.Format, Callable[[_Job, ExportResult], None]] = {
    "onnx-adapter": _make_adapter,
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
    result.parity[path.name] = parity
    result.files[path.name] = path


def _keep_if_good(job: _Job, result: ExportResult, fmt: names.Format, path: Path) -> None:
    parity = measure(runner(path), job.probe, lpips=True)
    result.parity[path.name] = parity
    reasons = reasons_to_drop(fmt, parity)
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


def open_session(path: Path, threads: int = 1) -> ort.InferenceSession:
    """ONNX Runtime on the CPU.

    Raises:
        ExportError: The file does not load.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot load {path.name}: {error}") from error


def runner(path: Path, threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """A function that runs a file whose only input is the image."""
    session = open_session(path, threads)
    return lambda x: run_graph(session, {names.IMAGE: x})


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


def _text_dim(generator: nn.Module) -> int:
    dim = getattr(generator, "text_dim", None)
    if not isinstance(dim, int):
        raise UserError("the generator does not say its text_dim", "use a generator of e2gan_cluster.nn.generator")
    return dim


def _graph_meta(base_id: str, kind: str) -> dict[str, str]:
    return {names.META_FORMAT: str(names.FORMAT_VERSION), names.META_BASE: base_id, names.META_KIND: kind}


def _fitted(images_NHWC: np.ndarray, resolution: int | None) -> np.ndarray:
    """Images that the exported graph takes: resized where its size is fixed, else cut to multiples of 16."""
    height, width = images_NHWC.shape[1:3]
    if resolution and (height, width) != (resolution, resolution):
        from PIL import Image

        return np.stack([np.asarray(Image.fromarray(i).resize((resolution, resolution))) for i in images_NHWC])
    return images_NHWC[:, : height - height % names.SIZE_MULTIPLE, : width - width % names.SIZE_MULTIPLE]
