"""Core ML packages, with the extra package ``coremltools``; made on Linux or macOS, run on Apple devices.

Example:
    >>> save_mlpackage(module, Path("merged.mlpackage.zip"), resolution=256)
"""

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from e2gan_cluster.errors import UserError
from e2gan_cluster.export.graph import ExportError, image_example
from e2gan_cluster.export.names import EDITED, IMAGE

DEFAULT_SIDE = 256


def load_coremltools() -> Any:
    """The package.

    Raises:
        UserError: It is not installed.
    """
    try:
        import coremltools  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "publish.formats asks for coreml, and coremltools is not installed",
            'pip install "e2gan-cluster[coreml]" (or pip install coremltools), or take coreml out of publish.formats',
        ) from error
    return coremltools


def save_mlpackage(module: nn.Module, target: Path, resolution: int | None = None) -> Path:
    """Converts ``image -> edited`` to an ML program of one size and zips the package.

    Args:
        module: Merged generator, inference mode.
        target: The ``.zip`` to write; it holds one ``.mlpackage`` folder.
        resolution: Side of the image, pixels; `DEFAULT_SIDE` if empty (Core ML's neural engine wants a fixed one).

    Raises:
        UserError: coremltools is not installed.
        ExportError: It refuses the network.
    """
    tools = load_coremltools()
    image = image_example(resolution or DEFAULT_SIDE)
    try:
        with torch.no_grad():
            traced = torch.jit.trace(module, image, check_trace=False)
        model = tools.convert(
            traced,
            inputs=[tools.TensorType(name=IMAGE, shape=tuple(image.shape), dtype=np.float32)],
            outputs=[tools.TensorType(name=EDITED, dtype=np.float32)],
            convert_to="mlprogram",
            minimum_deployment_target=tools.target.iOS16,
            compute_precision=tools.precision.FLOAT16,
        )
        with tempfile.TemporaryDirectory() as scratch:
            package = Path(scratch) / "merged.mlpackage"
            model.save(str(package))
            return _zip(package, target)
    except Exception as error:
        raise ExportError(f"coremltools cannot convert the generator: {error}") from error


def _zip(package: Path, target: Path) -> Path:
    """Same files, same bytes: fixed times and order."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in package.rglob("*") if p.is_file()):
            info = zipfile.ZipInfo(f"{package.name}/{path.relative_to(package).as_posix()}", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, path.read_bytes())
    return target
