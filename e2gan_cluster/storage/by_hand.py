"""Publishing a PEFT folder that was not trained by this pipeline, or not in this run.

Example:
    publish_folder(store, "oil-painting", Path("out/oil"), {"prompt": "an oil painting"})
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2gan_cluster import __version__
from e2gan_cluster.errors import InputError
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.adapter_check import check_adapter
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.storage.bundle import read_manifest, walk_files
from e2gan_cluster.storage.manifest import MANIFEST
from e2gan_cluster.storage.registry import check_base_in_store, publish_adapter

CARD = "README.md"


def publish_folder(
    store: ObjectStore,
    concept: str,
    folder: Path,
    facts: Mapping[str, Any],
    channel: str = "latest",
    sign_key: Path | None = None,
) -> str:
    """Publish all files of a PEFT folder; a model card is written if it has none.

    Args:
        store: Registry that holds the adapter's base.
        concept: Concept name.
        folder: ``adapter_model.safetensors``, ``adapter_config.json``, and whatever else belongs to it.
        facts: Added to the manifest (prompt, licence, ...).
        channel: Channel to move.
        sign_key: PEM file of an Ed25519 private key.

    Returns:
        The version.

    Raises:
        InputError: Not a folder, an unknown base, a file that is never published.
        IntegrityError: Unusable weights.
        BaseMismatchError: The adapter does not fit its base.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder", "name the folder with adapter_model.safetensors")
    paths = {path.relative_to(folder).as_posix(): path for path in walk_files(folder)}
    files = {name: path.read_bytes() for name, path in paths.items() if name != MANIFEST}
    adapter = check_adapter(files, str(folder))
    check_base_in_store(store, adapter, str(folder))
    base_meta = read_manifest(store, keys.base_prefix(adapter.base_id)).meta
    meta = {
        "base_id": adapter.base_id,
        "config_fingerprint": "published by hand",
        "code_version": __version__,
        "teacher_fingerprint": str(base_meta.get("teacher_fingerprint", "not stated")),
        "metrics": {},
        **facts,
    }
    files.setdefault(CARD, _card(concept, meta, adapter.ranks).encode())
    return publish_adapter(store, concept, files, meta, channel, sign_key)


def _card(concept: str, meta: Mapping[str, Any], ranks: Mapping[str, int]) -> str:
    lines = [
        f"# {concept}",
        "",
        f"LoRA adapter of the E2GAN base `{meta['base_id']}`, published by hand.",
        "",
        f"- prompt: {meta.get('prompt') or 'not stated'}",
        f"- licence: {meta.get('licence', 'not stated')}",
        "",
        "| layer | rank |",
        "|---|---|",
        *(f"| `{layer}` | {rank} |" for layer, rank in sorted(ranks.items())),
        "",
    ]
    return "\n".join(lines)
