"""Graphs of a base for devices, made once, each proven equal to torch before it may be published.

Example:
    >>> base_export = export_base(base, layers, workdir)
    >>> sorted(base_export.files)
    ['base-fp16.onnx', 'base-inputs.onnx', 'base.onnx', 'base.ort']
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
import torch
from torch import nn
from torch.export import Dim

from e2gan_cluster.errors import IntegrityError, UserError
from e2gan_cluster.evaluate.inference import to_uint8
from e2gan_cluster.export import names
from e2gan_cluster.export.factors import effect_tensors
from e2gan_cluster.export.folding import EffectInputs, adaptable, adaptable_layers, check_size, matrix_shape, plain_copy
from e2gan_cluster.export.graph import (
    ExportError,
    free_ranks,
    image_axes,
    image_example,
    mobile_usability,
    save_graph,
    to_onnx,
    with_defaults,
)
from e2gan_cluster.export.halves import in_halves
from e2gan_cluster.export.ort_file import save_ort
from e2gan_cluster.export.parity import Parity, Probe, measure, require_close, require_exact
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
        files: Path by file name: base.onnx, base-inputs.onnx, base-fp16.onnx, base.ort.
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
        node), base-fp16.onnx (base.onnx stored in half the bytes) and base.ort.

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
    meta = graph_meta(base.base_id, "base") | {names.META_LAYERS: json.dumps(names_of_layers)}
    files = {
        names.BASE_INPUTS_ONNX: save_graph(model, workdir / names.BASE_INPUTS_ONNX, meta),
        names.BASE_ONNX: save_graph(with_defaults(model), workdir / names.BASE_ONNX, meta),
        names.BASE_FP16_ONNX: save_graph(with_defaults(in_halves(model)), workdir / names.BASE_FP16_ONNX, meta),
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
    photos = fitted(photos_NHWC, export.resolution)
    probe = Probe.of(lambda x: generator(x, torch.from_numpy(tokens_TD[None])), photos)
    tensors = effect_tensors({}, tokens_TD, export.layers)
    text = {names.TEXT: tensors[names.TEXT]}
    feeds = dict.fromkeys(export.files, text) | {
        names.BASE_INPUTS_ONNX: tensors,
        names.BASE_FP16_ONNX: {names.TEXT: text[names.TEXT].astype(np.float16)},
    }
    found = {}
    for name, path in export.files.items():
        session = open_session(path)
        feed = feeds[name]
        found[name] = measure(lambda x, s=session, f=feed: run_graph(s, {names.IMAGE: x, **f}), probe)
        if name == names.BASE_FP16_ONNX:
            require_close(name, "onnx-adapter-fp16", found[name])
        else:
            require_exact(name, found[name], max_error)
    return found


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


def _text_dim(generator: nn.Module) -> int:
    dim = getattr(generator, "text_dim", None)
    if not isinstance(dim, int):
        raise UserError("the generator does not say its text_dim", "use a generator of e2gan_cluster.nn.generator")
    return dim


def graph_meta(base_id: str, kind: str) -> dict[str, str]:
    """Metadata that every exported graph carries."""
    return {names.META_FORMAT: str(names.FORMAT_VERSION), names.META_BASE: base_id, names.META_KIND: kind}


def fitted(images_NHWC: np.ndarray, resolution: int | None) -> np.ndarray:
    """Images that the exported graph takes: resized where its size is fixed, else cut to multiples of 16."""
    height, width = images_NHWC.shape[1:3]
    if resolution and (height, width) != (resolution, resolution):
        from PIL import Image

        return np.stack([np.asarray(Image.fromarray(i).resize((resolution, resolution))) for i in images_NHWC])
    return images_NHWC[:, : height - height % names.SIZE_MULTIPLE, : width - width % names.SIZE_MULTIPLE]
