"""A pulled folder: its layout, and whether every byte in it is what was published.

Layout: ``e2gan.lock``, ``adapters/<concept>/...`` and, where the format needs it, ``base/...``; each with its manifest.

Example:
    verify_folder(Path("app/src/main/assets/effects"))
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from e2gan_cluster.errors import InputError, IntegrityError
from e2gan_cluster.storage import bundle
from e2gan_cluster.storage.adapter_check import CONFIG, WEIGHTS, check_adapter, check_base_match
from e2gan_cluster.storage.checks import sha256_of
from e2gan_cluster.storage.files import TEMP_PREFIX
from e2gan_cluster.storage.formats import select
from e2gan_cluster.storage.lock import LOCK, Lock, Pin, read_lock
from e2gan_cluster.storage.manifest import MANIFEST, Manifest
from e2gan_cluster.storage.parallel import parallel_map
from e2gan_cluster.storage.registry import check_identity
from e2gan_cluster.storage.safetensors_check import TensorInfo, check_finite, read_header

STAGING = ".e2gan-pull"
_INPUTS = "lora_inputs.safetensors"


@dataclass(frozen=True)
class Verified:
    """What a good folder holds.

    Attributes:
        adapters: Concept -> version; empty for a single published folder.
        files: Number of files, manifests included.
        num_bytes: Their size.
    """

    adapters: dict[str, str]
    files: int
    num_bytes: int


def adapter_folder(root: Path, concept: str) -> Path:
    """Where a pulled adapter lies."""
    return root / "adapters" / concept


def base_folder(root: Path) -> Path:
    """Where the base's files lie."""
    return root / "base"


def verify_folder(path: Path, trusted: str | None = None) -> Verified:
    """Compare a pulled folder, or one published folder, with its manifests: every byte, nothing added, nothing missing.

    Args:
        path: Holds ``e2gan.lock`` or ``manifest.json``.
        trusted: Public key (base64) that must have signed every adapter's manifest.

    Raises:
        InputError: It holds neither.
        IntegrityError: Names the first file that is wrong.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder", "name a folder made by e2gan pull")
    lock = read_lock(path / LOCK)
    if lock is None:
        if not (path / MANIFEST).is_file():
            raise InputError(f"{path} has neither {LOCK} nor {MANIFEST}", "name a folder made by e2gan pull")
        manifest = bundle.local_manifest(path, trusted)
        bundle.check_folder(path, manifest)
        check_content(path, manifest, [entry.path for entry in manifest.files])
        adapters: dict[str, str] = {}
    else:
        _verify_pulled(path, lock, trusted)
        adapters = {concept: pin.version for concept, pin in lock.adapters.items()}
    found = list(_own_files(path))
    return Verified(adapters, len(found), sum(file.stat().st_size for file in found))


def _verify_pulled(path: Path, lock: Lock, trusted: str | None) -> None:
    base = None
    if lock.base_manifest_sha256 is not None:
        base = pinned_manifest(base_folder(path), lock.base_manifest_sha256)
    base_names: set[str] = set()

    def check(item: tuple[str, Pin]) -> frozenset[str]:
        concept, pin = item
        folder = adapter_folder(path, concept)
        manifest = pinned_manifest(folder, pin.manifest_sha256, trusted)
        check_identity(manifest, concept, pin.version, str(folder / MANIFEST))
        check_base_match(f"adapter {concept}", str(manifest.meta.get("base_id")), lock.base_id)
        chosen = select(lock.formats, manifest, base, f"adapter {concept}")
        bundle.check_folder(folder, manifest, chosen.adapter)
        check_content(folder, manifest, chosen.adapter)
        return chosen.base

    for names in parallel_map(check, lock.adapters.items()):
        base_names |= names
    if base is not None:
        bundle.check_folder(base_folder(path), base, base_names)
    known = {LOCK, *(f"adapters/{concept}" for concept in lock.adapters), *(["base"] if base else [])}
    for file in _own_files(path):
        name = file.relative_to(path).as_posix()
        if not any(name == entry or name.startswith(f"{entry}/") for entry in known):
            raise IntegrityError(f"{file} was added: {LOCK} does not know it", "remove it, or pull again")


def _own_files(path: Path) -> Iterator[Path]:
    for file in bundle.walk_files(path):
        parts = file.relative_to(path).parts
        if parts[0] != STAGING and not parts[-1].startswith(TEMP_PREFIX):
            yield file


def pinned_manifest(folder: Path, sha256: str, trusted: str | None = None) -> Manifest:
    """The manifest of a local folder, if it is the one a lock names.

    Raises:
        IntegrityError: Missing, damaged, another version, or not signed by ``trusted``.
    """
    manifest = bundle.local_manifest(folder, trusted)
    found = sha256_of(manifest.to_json())
    if found != sha256:
        raise IntegrityError(
            f"{folder / MANIFEST} has sha256 {found}, but {LOCK} says {sha256}",
            "run e2gan pull again: it mends the folder",
        )
    return manifest


def check_content(folder: Path, manifest: Manifest, names: Collection[str]) -> None:
    """Look into the files: finite numbers, ranks and base as the manifest says.

    Raises:
        IntegrityError: Unusable weights.
        BaseMismatchError: Weights of another base.
    """
    base_id = str(manifest.meta.get("base_id", ""))
    ranks = manifest.meta.get("ranks") or {}
    if {WEIGHTS, CONFIG} <= set(names):
        adapter = check_adapter({name: (folder / name).read_bytes() for name in (WEIGHTS, CONFIG)}, str(folder))
        check_base_match(str(folder / WEIGHTS), adapter.base_id, base_id)
        if ranks and dict(adapter.ranks) != ranks:
            raise IntegrityError(f"{folder / WEIGHTS} has other ranks than its manifest says", "publish it again")
    for name in names:
        if name.endswith(".safetensors"):
            data = (folder / name).read_bytes()
            tensors = read_header(data, str(folder / name))
            check_finite(data, tensors, str(folder / name))
            if name == _INPUTS:
                _check_inputs(tensors, ranks, str(folder / name))


def _check_inputs(tensors: dict[str, TensorInfo], ranks: dict[str, int], what: str) -> None:
    for layer, rank in ranks.items():
        found = tensors.get(f"{layer}.lora_A")
        if found is None or not found.shape or found.shape[0] != rank:
            shown = list(found.shape) if found else "missing"
            raise IntegrityError(
                f"{what}: layer {layer!r} is {shown}, its manifest says rank {rank}", "publish it again"
            )
