"""Device files of published adapters in a local folder of the same layout as a pulled one.

Example:
    >>> exporter = Exporter(store, config.publish, Path("build/int8"), photos_NHWC)
    >>> exporter.export("oil-painting", ["merged-int8"]).sizes
    {'merged-int8.onnx': 7903311}
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load

from e2gan_cluster.config import PublishConfig
from e2gan_cluster.errors import InputError
from e2gan_cluster.export.adapter_export import ExportResult, export_adapter
from e2gan_cluster.export.base_export import BaseExport, check_base_export, export_base
from e2gan_cluster.export.names import Format
from e2gan_cluster.storage import keys, registry
from e2gan_cluster.storage.adapter_check import CONFIG, PROMPT, WEIGHTS
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.storage.bundle import read_bundle
from e2gan_cluster.storage.files import make_folder, write
from e2gan_cluster.storage.folder import adapter_folder, base_folder
from e2gan_cluster.storage.manifest import MANIFEST, Manifest
from e2gan_cluster.train.base_store import Base, load_base


class Exporter:
    """Exports adapters of one base into a folder.

    Args:
        store: Holds bases and adapters.
        config: Channel, resolution, allowed error.
        out: Folder to fill.
        photos_NHWC: Held-out photos, uint8.
    """

    def __init__(self, store: ObjectStore, config: PublishConfig, out: Path, photos_NHWC: np.ndarray) -> None:
        self._store = store
        self._config = config
        self._out = out
        self._photos_NHWC = photos_NHWC
        self._base: tuple[Base, BaseExport] | None = None

    def export(self, concept: str, formats: Sequence[Format]) -> ExportResult:
        """Exports a published adapter with its prompt.

        Args:
            concept: Its name.
            formats: Formats to make.

        Returns:
            What was made; files lie under ``adapters/<concept>/``.

        Raises:
            InputError: It is not published, or belongs to another base than the ones before.
            ExportError: A file differs from torch.
        """
        version = registry.resolve(self._store, concept, self._config.channel)
        prefix = keys.adapter_version_prefix(concept, version)
        bundle = read_bundle(self._store, prefix, [WEIGHTS, CONFIG, PROMPT])
        base_id = str(bundle.manifest.meta["base_id"])
        base, base_export = self._base_for(base_id)
        tokens_TD = load(bundle.files[PROMPT])["tokens"]
        folder = adapter_folder(self._out, concept)
        result = export_adapter(
            base, base_export, bundle.files, tokens_TD, formats, folder, self._photos_NHWC,
            max_error=self._config.max_error,
        )  # fmt: skip
        for path in folder.iterdir():
            if path.name not in result.files:
                path.unlink()
        meta = {"base_id": base_id, "concept": concept, "version": version, "export": result.meta()}
        write(folder / MANIFEST, Manifest.build(result.files, meta).to_json())
        return result

    def _base_for(self, base_id: str) -> tuple[Base, BaseExport]:
        if self._base is None:
            base = load_base(self._store, base_id)
            folder = base_folder(self._out)
            make_folder(folder)
            exported = export_base(base, None, folder, self._config.resolution)
            check_base_export(base, exported, self._photos_NHWC, self._config.max_error)
            write(folder / MANIFEST, Manifest.build(exported.files, exported.meta()).to_json())
            self._base = base, exported
        if self._base[0].base_id != base_id:
            raise InputError(
                f"adapters of bases {self._base[0].base_id} and {base_id} do not go into one folder",
                "name the adapters of one base with --concept",
            )
        return self._base
