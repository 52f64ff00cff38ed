"""The adapter registry: immutable versions named by content, channels that point to them.

Example:
    version = publish_adapter(store, "oil-painting", files, meta)
    resolve(store, "oil-painting", "latest") == version
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2gan_cluster.errors import InputError, IntegrityError, UserError
from e2gan_cluster.names import did_you_mean
from e2gan_cluster.storage import bundle, channels, keys
from e2gan_cluster.storage.adapter_check import Adapter, check_adapter, check_against_base, check_base_match
from e2gan_cluster.storage.base import ObjectInfo, ObjectStore
from e2gan_cluster.storage.channels import Channel, Target
from e2gan_cluster.storage.checks import sha256_of
from e2gan_cluster.storage.manifest import MANIFEST, Manifest, version_id
from e2gan_cluster.storage.parallel import parallel_map
from e2gan_cluster.storage.safetensors_check import read_header

REQUIRED_META = ("base_id", "config_fingerprint", "code_version", "teacher_fingerprint", "metrics")
"""Facts that every manifest carries, beside `concept`, `ranks` and `created_at`, which are filled in."""


@dataclass(frozen=True)
class AdapterInfo:
    """One concept in the registry.

    Attributes:
        concept: Its name.
        channels: Channel -> version.
        versions: All whole versions.
        manifest: Manifest of the `latest` version (or of another channel's, where there is no `latest`).
        problem: What is wrong with it, if it cannot be read.
    """

    concept: str
    channels: Mapping[str, str]
    versions: tuple[str, ...]
    manifest: Manifest | None = None
    problem: str = ""


@dataclass(frozen=True)
class Change:
    """One difference between two versions.

    Attributes:
        field: Name, e.g. ``metrics.lpips`` or ``file adapter.onnx_adapter``.
        before: Value in the first version, None if it has none.
        after: Value in the second.
    """

    field: str
    before: Any
    after: Any


@dataclass
class _Found:
    channels: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)


def publish_adapter(
    store: ObjectStore,
    concept: str,
    files: Mapping[str, bytes],
    meta: Mapping[str, Any],
    channel: str = "latest",
    sign_key: Path | None = None,
) -> str:
    """Publish an adapter and point a channel to it. The same files again: same version, nothing changes.

    Args:
        store: Registry.
        concept: Concept name.
        files: File name -> content: the PEFT files, prompt, model card, samples, exports.
        meta: Facts; needs `REQUIRED_META`.
        channel: Channel to move; readers of it see the old version or the new one, whole.
        sign_key: PEM file of an Ed25519 private key that signs the manifest.

    Returns:
        The version: 12 hex digits of the content.

    Raises:
        InputError: A bad name, a missing fact, a file that is never published.
        IntegrityError: The adapter is unusable: NaN, wrong or missing tensors, another base than `base_id`.
        StoreError: The store gave up; readers still see the old version, and the same call goes on later.
    """
    try:
        keys.check_name(concept, "concept")
        keys.check_name(channel, "channel")
    except ValueError as error:
        raise InputError(str(error), "choose another name") from None
    missing = [name for name in REQUIRED_META if name not in meta]
    if missing:
        raise InputError(f"publishing {concept}: meta lacks {', '.join(missing)}", "state these facts")
    adapter = check_adapter(files, concept)
    check_base_match(f"adapter {concept}", adapter.base_id, str(meta["base_id"]))
    facts = {"created_at": channels.now(), **meta, "concept": concept, "ranks": dict(sorted(adapter.ranks.items()))}
    version = version_id(Manifest.build(files, facts).files)
    prefix = keys.adapter_version_prefix(concept, version)
    manifest = bundle.publish_bundle(store, prefix, files, facts, sign_key)
    _point(store, concept, channel, version, manifest)
    return version


def _point(store: ObjectStore, concept: str, channel: str, version: str, manifest: Manifest) -> None:
    target = Target(version, sha256_of(manifest.to_json()), channels.now())

    def choose(current: Channel | None) -> Target | None:
        return None if current and current.target.version == version else target

    channels.move_channel(store, concept, channel, choose, manifest.to_json())


def check_base_in_store(store: ObjectStore, adapter: Adapter, what: str) -> None:
    """Compare an adapter with the published base it names.

    Raises:
        InputError: The registry does not hold that base.
        BaseMismatchError: A layer is missing there or has another shape.
    """
    prefix = keys.base_prefix(adapter.base_id)
    weights = "generator.safetensors"
    if bundle.find_manifest(store, prefix) is None:
        raise InputError(
            f"{what} belongs to base {adapter.base_id}, which {store.url} does not hold",
            "publish to the storage that holds its base",
        )
    data = bundle.read_bundle(store, prefix, [weights]).files[weights]
    check_against_base(adapter, read_header(data, prefix + weights), what)


def resolve(store: ObjectStore, concept: str, channel_or_version: str = "latest") -> str:
    """The version that a channel (or a version's own name) means.

    Raises:
        InputError: No such concept, channel or version; proposes the nearest.
    """
    try:
        channel = channels.read_channel(store, concept, channel_or_version)
        if channel is not None:
            return channel.target.version
        if bundle.find_manifest(store, keys.adapter_version_prefix(concept, channel_or_version)) is not None:
            return channel_or_version
    except ValueError as error:
        raise InputError(str(error), "check the name") from None
    raise _unknown(store, concept, channel_or_version)


def _unknown(store: ObjectStore, concept: str, ref: str) -> InputError:
    try:
        found = _scan(store)
    except UserError:  # a store that cannot be listed
        return InputError(f"{store.url} has no {ref} of {concept}", "check the names")
    if concept not in found:
        return InputError(
            f"{store.url} has no adapter {concept}{did_you_mean(concept, found)}", "list them: e2gan adapters list"
        )
    known = [*found[concept].channels, *found[concept].versions]
    return InputError(
        f"{concept} has no channel or version {ref}{did_you_mean(ref, known)}", f"see: e2gan adapters show {concept}"
    )


def read_manifest(store: ObjectStore, concept: str, version: str, trusted: str | None = None) -> Manifest:
    """Manifest of one version, checked against the names it stands under.

    Raises:
        InputError: No such version.
        IntegrityError: Damaged, of another concept or version, or not signed by ``trusted``.
    """
    prefix = keys.adapter_version_prefix(concept, version)
    manifest = bundle.read_manifest(store, prefix, trusted)
    check_identity(manifest, concept, version, f"{store.url}/{prefix}{MANIFEST}")
    return manifest


def check_identity(manifest: Manifest, concept: str, version: str, what: str) -> None:
    """Refuse a manifest that was moved from another concept or version.

    Raises:
        IntegrityError: It was.
    """
    found = (manifest.meta.get("concept"), version_id(manifest.files))
    if found != (concept, version):
        raise IntegrityError(
            f"{what} is the manifest of {found[0]} {found[1]}, not of {concept} {version}", "publish the adapter again"
        )


def _scan(store: ObjectStore) -> dict[str, _Found]:
    """Concepts with their channels and whole versions, from one listing."""
    found: dict[str, _Found] = {}
    for info in store.list("adapters/"):
        parts = info.key.split("/")
        if len(parts) == 3 and parts[2].endswith(".json"):
            found.setdefault(parts[1], _Found()).channels.append(parts[2].removesuffix(".json"))
        elif len(parts) == 4 and parts[3] == MANIFEST:
            found.setdefault(parts[1], _Found()).versions.append(parts[2])
    return found


def list_pointers(store: ObjectStore, channel: str = "latest") -> dict[str, ObjectInfo]:
    """Concept -> pointer object of all concepts that have a channel, from one listing."""
    found: dict[str, ObjectInfo] = {}
    for info in store.list("adapters/"):
        parts = info.key.split("/")
        if len(parts) == 3 and parts[2] == f"{channel}.json":
            found[parts[1]] = info
    return found


def list_adapters(store: ObjectStore) -> list[AdapterInfo]:
    """Everything in the registry, by concept name; damage is reported in `AdapterInfo.problem`."""
    return list(parallel_map(lambda item: _info(store, *item), sorted(_scan(store).items())))


def _info(store: ObjectStore, concept: str, found: _Found) -> AdapterInfo:
    pointers: dict[str, str] = {}
    try:
        for name in sorted(found.channels):
            channel = channels.read_channel(store, concept, name)
            if channel is not None:
                pointers[name] = channel.target.version
        shown = pointers.get("latest") or next(iter(pointers.values()), None)
        manifest = read_manifest(store, concept, shown) if shown else None
    except (UserError, ValueError) as error:
        return AdapterInfo(concept, pointers, tuple(found.versions), None, str(error).partition("\n")[0])
    return AdapterInfo(concept, pointers, tuple(found.versions), manifest)


def promote(store: ObjectStore, concept: str, channel_or_version: str, channel: str) -> str:
    """Point ``channel`` to a version, or to where another channel points.

    Returns:
        The version.

    Raises:
        InputError: No such version.
        IntegrityError: That version is damaged or incomplete.
    """
    version = resolve(store, concept, channel_or_version)
    manifest = read_manifest(store, concept, version)
    prefix = keys.adapter_version_prefix(concept, version)
    sizes = {info.key.removeprefix(prefix): info.size for info in store.list(prefix)}
    for entry in manifest.files:
        if sizes.get(entry.path) != entry.size:
            raise IntegrityError(f"{store.url}/{prefix}{entry.path} is missing or cut", "publish the adapter again")
    _point(store, concept, channel, version, manifest)
    return version


def rollback(store: ObjectStore, concept: str, channel: str = "latest") -> str:
    """Point a channel back to where it pointed before its last move.

    Returns:
        The version it points to now.

    Raises:
        InputError: It never pointed elsewhere.
    """
    return channels.roll_back(store, concept, channel).target.version


def diff(store: ObjectStore, concept: str, before: str, after: str) -> list[Change]:
    """What differs between two versions or channels of a concept: facts, then files."""
    old, new = (read_manifest(store, concept, resolve(store, concept, ref)) for ref in (before, after))
    changes = _compare(_flatten(old.meta), _flatten(new.meta))
    sizes = [{f"file {e.path}": f"{e.size} bytes, sha256 {e.sha256[:12]}" for e in m.files} for m in (old, new)]
    return changes + _compare(*sizes)


def _compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    names = sorted(set(before) | set(after))
    return [Change(n, before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)]


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix.removesuffix("."): value}
    items: Iterable[tuple[str, Any]] = value.items()
    return {name: leaf for key, inner in items for name, leaf in _flatten(inner, f"{prefix}{key}.").items()}
