"""The device files of a base in the store: exported and published once, fetched afterwards.

Example:
    >>> base_export = ensure_base_export(store, base, layers, workdir)
    >>> sorted(info.key for info in store.list(f"mobile/{base.base_id}/"))
    ['mobile/0123456789ab/base-inputs.onnx', 'mobile/0123456789ab/base.onnx', ...]
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from e2gan_cluster.errors import InputError
from e2gan_cluster.export.base_export import (
    MAX_ERROR,
    BaseExport,
    BaseLike,
    check_base_export,
    export_base,
)
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.storage.bundle import find_manifest, publish_bundle


def ensure_base_export(
    store: ObjectStore,
    base: BaseLike,
    layers: Sequence[str] | None,
    workdir: Path,
    resolution: int | None = None,
    photos_NHWC: np.ndarray | None = None,
    max_error: float = MAX_ERROR,
) -> BaseExport:
    """The base's device files: those in the store, or exported, checked against torch and published now.

    Args:
        store: Storage root.
        base: Loaded base.
        layers: Layers that its adapters change; None = all that can carry LoRA.
        workdir: Folder for local copies.
        resolution: Fixed side, pixels, or None.
        photos_NHWC: Photos of the parity check, uint8; None = an artificial one.
        max_error: Largest allowed difference from torch, in [-1, 1].

    Returns:
        The export, with local files.

    Raises:
        InputError: The store has it for other layers or another size.
        IntegrityError: The stored files are damaged.
        ExportError: The export differs from torch; nothing is published.
    """
    found = fetch_base_export(store, base.base_id, workdir)
    if found is None:
        found = export_base(base, layers, workdir, resolution)
        check_base_export(base, found, photos_NHWC, max_error)
        publish_bundle(store, keys.mobile_file(base.base_id, ""), found.files, found.meta())
        return found
    missing = sorted(set(layers or ()) - set(found.layers))
    if missing or found.resolution != resolution:
        what = f"without {', '.join(missing[:3])}" if missing else f"for {found.resolution or 'any'} px"
        raise InputError(
            f"the device files of base {base.base_id} in {store.url} were exported {what}",
            "keep publish.resolution and the adapted parts, or publish to another storage",
        )
    return found


def fetch_base_export(store: ObjectStore, base_id: str, workdir: Path) -> BaseExport | None:
    """Published device files of a base, verified, as local files; None if there are none.

    Args:
        store: Storage root.
        base_id: The base.
        workdir: Folder for the files.

    Raises:
        IntegrityError: They are damaged or of a later format.
    """
    prefix = keys.mobile_file(base_id, "")
    manifest = find_manifest(store, prefix)
    if manifest is None:
        return None
    workdir.mkdir(parents=True, exist_ok=True)
    for entry in manifest.files:
        store.get_file(prefix + entry.path, workdir / entry.path, sha256=entry.sha256, size=entry.size)
    return BaseExport.of(workdir, manifest.meta)
