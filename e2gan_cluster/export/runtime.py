"""Runs pulled effects on photos, as an app does: ONNX Runtime, numpy and Pillow, no torch.

One base stays loaded; an effect is switched by swapping its adapter.

Example:
    >>> editor = Editor.open("build/effects")
    >>> edited_HWC = editor.edit(photo_HWC, "oil-painting")
    >>> other_HWC = editor.edit(photo_HWC, "snowy-winter")  # same base, other adapter
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load

from e2gan_cluster.errors import BaseMismatchError, InputError, IntegrityError
from e2gan_cluster.export import names
from e2gan_cluster.export.folder import EffectFolder, read_folder
from e2gan_cluster.export.tiles import MAX_PIXELS, edit_any_size

_PREFERENCE: tuple[names.Format, ...] = (
    "onnx-adapter", "required-inputs", "merged", "ort", "onnx-adapter-fp16", "merged-fp16", "merged-int8",
)  # fmt: skip

# File of the effect and file of the base (empty: none), for each format; the first that is there is taken.
_FILES: dict[names.Format, tuple[tuple[str, str], ...]] = {
    "onnx-adapter": ((names.FORMAT_FILES["onnx-adapter"], names.BASE_ONNX),),
    "onnx-adapter-fp16": ((names.FORMAT_FILES["onnx-adapter-fp16"], names.BASE_FP16_ONNX),),
    "required-inputs": ((names.FORMAT_FILES["required-inputs"], names.BASE_INPUTS_ONNX),),
    "merged": ((names.FORMAT_FILES["merged"], ""),),
    "merged-fp16": ((names.FORMAT_FILES["merged-fp16"], ""),),
    "merged-int8": ((names.FORMAT_FILES["merged-int8"], ""),),
    "ort": ((names.FORMAT_FILES["onnx-adapter"], names.BASE_ORT), (names.FORMAT_FILES["ort"], "")),
    "coreml": (),
}


class Effect(Protocol):
    """One loaded effect."""

    def run(self, image_1CHW: np.ndarray) -> np.ndarray:
        """Edits a float32 image in [-1, 1]."""
        ...

    @property
    def side(self) -> int | None:
        """Fixed side of the graph, or None."""
        ...


class Editor:
    """A folder of pulled effects, ready to edit photos.

    Args:
        folder: What is in the folder.
        fmt: Which files to use; None = the first kind that an effect has.
        threads: CPU threads; 0 = all cores.
    """

    def __init__(self, folder: EffectFolder, fmt: names.Format | None = None, threads: int = 0) -> None:
        self._folder = folder
        self._fmt: names.Format | None = fmt
        self._threads = threads
        self._graphs: dict[Path, Graph] = {}
        self._effects: dict[str, Effect] = {}

    @classmethod
    def open(cls, folder: str | Path, fmt: names.Format | None = None, threads: int = 0) -> "Editor":
        """Opens a folder written by ``e2gan pull``.

        Raises:
            InputError: No effect in it.
            IntegrityError: A file that describes it is damaged.
        """
        return cls(read_folder(Path(folder)), fmt, threads)

    @property
    def concepts(self) -> list[str]:
        """Names of the effects at hand."""
        return self._folder.concepts

    def load(self, concept: str) -> Effect:
        """Loads an effect, or returns it if loaded.

        Args:
            concept: Its name.

        Raises:
            InputError: It is not in the folder, or not in the format asked.
            BaseMismatchError: It belongs to another base.
            IntegrityError: A file is damaged.
        """
        if concept not in self._effects:
            self._effects[concept] = self._open(concept)
        return self._effects[concept]

    def edit(
        self, image: np.ndarray | Image.Image, concept: str | None = None, max_pixels: int = MAX_PIXELS
    ) -> np.ndarray:
        """Edits a photo of any size.

        Args:
            image: uint8 RGB ``[H, W, 3]``, or a Pillow image (converted to RGB; transparency is dropped).
            concept: Effect; may be left out if there is only one.
            max_pixels: Larger photos are edited in tiles.

        Returns:
            uint8 RGB of the same size.

        Raises:
            InputError: Not an image, or an unknown effect.
            BaseMismatchError: The effect belongs to another base.
        """
        photo_HWC = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        if photo_HWC.dtype != np.uint8 or photo_HWC.ndim != 3 or photo_HWC.shape[2] != 3 or not photo_HWC.size:
            raise InputError(
                f"edit wants uint8 RGB [H, W, 3], got {photo_HWC.dtype} {list(photo_HWC.shape)}", "convert it first"
            )
        effect = self.load(self._only() if concept is None else concept)
        return edit_any_size(effect.run, photo_HWC, effect.side, max_pixels)

    def _only(self) -> str:
        if len(self.concepts) != 1:
            raise InputError(f"which effect? There are {', '.join(self.concepts)}", "name one with --concept")
        return self.concepts[0]

    def _open(self, concept: str) -> Effect:
        effect, base = self._folder.effect(concept), self._folder.base()
        wanted = (self._fmt,) if self._fmt else _PREFERENCE
        for fmt in wanted:
            for own_name, base_name in _FILES[fmt]:
                own = effect.file(own_name)
                shared = base.file(base_name) if base and base_name else None
                if own is None or (base_name and shared is None):
                    continue
                if shared is None:
                    return MergedEffect(self._graph(own, concept, effect.base_id))
                graph = self._graph(shared, concept, effect.base_id)
                return InputsEffect(graph, own) if fmt == "required-inputs" else AdapterEffect(graph, own)
        raise InputError(
            f"{effect.path} has nothing that runs here (looked for {', '.join(wanted)} and its base)",
            "pull it again with --format onnx-adapter or merged",
        )

    def _graph(self, path: Path, concept: str, base_id: str) -> "Graph":
        if path not in self._graphs:
            self._graphs[path] = Graph.load(path, self._threads)
        graph = self._graphs[path]
        if graph.base_id != base_id:
            raise BaseMismatchError(
                f"{path} is of base {graph.base_id}, {concept} belongs to base {base_id}",
                "pull the effect and its base together",
            )
        return graph


@dataclass(frozen=True)
class Graph:
    """A loaded graph.

    Attributes:
        session: ONNX Runtime's session.
        base_id: Base it was made from.
        path: Its file.
    """

    session: ort.InferenceSession
    base_id: str
    path: Path

    @classmethod
    def load(cls, path: Path, threads: int = 0) -> "Graph":
        """Loads a graph on the CPU.

        Raises:
            IntegrityError: ONNX Runtime refuses it, or it is not of this project.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # warns about every default of base.onnx
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            meta = session.get_modelmeta().custom_metadata_map
        except Exception as error:
            raise IntegrityError(f"{path} cannot be loaded: {str(error)[:200]}", "pull it again") from error
        version = meta.get(names.META_FORMAT, "")
        if not version.isdigit() or names.META_BASE not in meta:
            raise IntegrityError(f"{path} was not exported by e2gan", "use files written by e2gan pull")
        check_format_version(int(version), path)
        return cls(session, meta[names.META_BASE], path)

    @property
    def side(self) -> int | None:
        """Fixed side of the image, pixels, or None."""
        image = next(value for value in self.session.get_inputs() if value.name == names.IMAGE)
        return image.shape[2] if isinstance(image.shape[2], int) else None


class AdapterEffect:
    """An effect as ONNX Runtime adapter on ``base.onnx``.

    Args:
        graph: The base.
        path: The ``.onnx_adapter``.

    Raises:
        BaseMismatchError: The adapter was made for another base.
        IntegrityError: It cannot be read.
    """

    def __init__(self, graph: Graph, path: Path) -> None:
        self._graph = graph
        try:
            # Its values live in this object's memory.
            form = ort.AdapterFormat.read_adapter(str(path))  # pyright: ignore[reportArgumentType]
            shapes = {name: tuple(value.shape()) for name, value in form.get_parameters().items()}
            self._adapter = ort.LoraAdapter()
            self._adapter.Load(str(path))
        except Exception as error:
            raise IntegrityError(
                f"{path} is not an ONNX Runtime adapter: {str(error)[:200]}", "pull it again"
            ) from error
        check_format_version(form.get_adapter_version(), path)
        expected = names.model_version(graph.base_id)
        if form.get_model_version() != expected:
            raise BaseMismatchError(
                f"{path} was made for another base than {graph.path} (model version {form.get_model_version():07x}, "
                f"the base is {graph.base_id})",
                "pull the adapter and its base together",
            )
        known = {value.name: value.shape for value in graph.session.get_overridable_initializers()}
        check_tensors(shapes, known, path, complete=False)
        self._options = ort.RunOptions()
        self._options.add_active_adapter(self._adapter)

    @property
    def side(self) -> int | None:
        """Fixed side of the graph, or None."""
        return self._graph.side

    def run(self, image_1CHW: np.ndarray) -> np.ndarray:
        """Edits a float32 image in [-1, 1]."""
        return run_graph(self._graph.session, {names.IMAGE: image_1CHW}, self._options)


class InputsEffect:
    """An effect as required inputs of ``base-inputs.onnx``.

    Args:
        graph: The base.
        path: The ``lora_inputs.safetensors``.

    Raises:
        BaseMismatchError: The tensors belong to another base.
        IntegrityError: They cannot be read.
    """

    def __init__(self, graph: Graph, path: Path) -> None:
        self._graph = graph
        data = path.read_bytes()
        try:
            meta = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]
            tensors = {name: value.astype(np.float32) for name, value in load(data).items()}
            base_id, version = meta[names.META_BASE], int(meta[names.META_FORMAT])
        except (SafetensorError, ValueError, KeyError, TypeError, struct.error) as error:
            raise IntegrityError(f"{path} cannot be read: {str(error)[:200]}", "pull it again") from error
        check_format_version(version, path)
        if base_id != graph.base_id:
            raise BaseMismatchError(
                f"{path} belongs to base {base_id}, {graph.path} is base {graph.base_id}",
                "pull the adapter and its base together",
            )
        known = {value.name: value.shape for value in graph.session.get_inputs() if value.name != names.IMAGE}
        check_tensors({name: value.shape for name, value in tensors.items()}, known, path, complete=True)
        self._tensors = tensors

    @property
    def side(self) -> int | None:
        """Fixed side of the graph, or None."""
        return self._graph.side

    def run(self, image_1CHW: np.ndarray) -> np.ndarray:
        """Edits a float32 image in [-1, 1]."""
        return run_graph(self._graph.session, {names.IMAGE: image_1CHW, **self._tensors})


class MergedEffect:
    """An effect as a graph of its own.

    Args:
        graph: The merged graph.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    @property
    def side(self) -> int | None:
        """Fixed side of the graph, or None."""
        return self._graph.side

    def run(self, image_1CHW: np.ndarray) -> np.ndarray:
        """Edits a float32 image in [-1, 1]."""
        return run_graph(self._graph.session, {names.IMAGE: image_1CHW})


def run_graph(
    session: ort.InferenceSession, feeds: Mapping[str, np.ndarray], options: ort.RunOptions | None = None
) -> np.ndarray:
    """Output ``edited`` of a graph."""
    return np.asarray(session.run([names.EDITED], dict(feeds), options)[0])


def check_format_version(version: int, path: Path) -> None:
    """Refuses files of a later format.

    Raises:
        IntegrityError: Newer than this program.
    """
    if not 1 <= version <= names.FORMAT_VERSION:
        raise IntegrityError(
            f"{path} is of bundle format {version}, this program reads up to {names.FORMAT_VERSION}",
            "update e2gan-cluster",
        )


def check_tensors(
    shapes: Mapping[str, tuple[int, ...]], known: Mapping[str, list[Any]], path: Path, *, complete: bool
) -> None:
    """Compares an effect's tensors with what the graph takes.

    Args:
        shapes: Shape by name.
        known: The graph's shapes; strings are free axes.
        path: The effect's file, for messages.
        complete: The graph needs all of them.

    Raises:
        BaseMismatchError: An unknown name, another shape, or a missing tensor.
    """
    wrong = [
        name
        for name, shape in shapes.items()
        if name not in known
        or len(known[name]) != len(shape)
        or any(isinstance(want, int) and want != n for want, n in zip(known[name], shape, strict=True))
    ]
    missing = sorted(set(known) - set(shapes)) if complete else []
    if wrong or missing or names.TEXT not in shapes:
        listed = ", ".join((wrong or missing or [names.TEXT])[:3])
        raise BaseMismatchError(
            f"{path} does not fit the base's graph: {listed}", "pull the adapter and its base together"
        )
