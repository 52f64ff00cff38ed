"""What a pull has to bring: from names, a channel or a lock to manifests and file names. Changes nothing."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from e2gan_cluster.errors import BaseMismatchError, InputError, IntegrityError, StoreError
from e2gan_cluster.storage import bundle, formats, keys, registry
from e2gan_cluster.storage.adapter_check import check_base_match
from e2gan_cluster.storage.base import ObjectInfo, ObjectStore
from e2gan_cluster.storage.channels import Channel
from e2gan_cluster.storage.checks import sha256_of
from e2gan_cluster.storage.folder import adapter_folder, base_folder
from e2gan_cluster.storage.formats import PullFormat
from e2gan_cluster.storage.lock import Lock, Pin
from e2gan_cluster.storage.manifest import MANIFEST, Manifest
from e2gan_cluster.storage.parallel import parallel_map_slow
from e2gan_cluster.storage.pointer_cache import PointerCache

_WORTH_A_LISTING = 50
BASE_ITEM = "(base)"
"""Name of the base's files in plans and results; no concept is called so."""


@dataclass(frozen=True)
class PullRequest:
    """What a user asks for.

    Attributes:
        target: Folder to fill.
        concepts: ``name``, ``name@channel`` or ``name@version``; empty: all (or those of the lock).
        channel: Channel of names without ``@``.
        lock: Exactly what this lock says; the folder then holds nothing else.
        formats: Export formats.
        base_id: Base the app ships; None: that of the folder's lock, or else of the adapters, if it is one.
        trusted: Public key (base64) that must have signed the manifests.
        workers: Parallel transfers.
    """

    target: Path
    concepts: tuple[str, ...] = ()
    channel: str = "latest"
    lock: Lock | None = None
    formats: tuple[PullFormat, ...] = ("onnx-adapter",)
    base_id: str | None = None
    trusted: str | None = None
    workers: int = 16


@dataclass(frozen=True)
class Item:
    """One folder to bring.

    Attributes:
        name: Concept, or `BASE_ITEM`.
        folder: Where it goes.
        prefix: Where its files are in the registry.
        manifest: What it is.
        files: Names to bring.
    """

    name: str
    folder: Path
    prefix: str
    manifest: Manifest
    files: frozenset[str]

    def is_there(self) -> bool:
        """Whether the folder holds exactly these bytes already."""
        try:
            bundle.check_folder(self.folder, self.manifest, self.files)
        except (IntegrityError, StoreError, OSError):
            return False
        return True


@dataclass(frozen=True)
class PullPlan:
    """Everything to bring, and the lock that describes it."""

    items: tuple[Item, ...]
    lock: Lock
    skipped: tuple[str, ...] = ()


def make_plan(store: ObjectStore, request: PullRequest, current: Lock | None) -> PullPlan:
    """Resolve a request.

    Args:
        store: Registry.
        request: What is asked for.
        current: Lock of the target folder; its other adapters stay.

    Raises:
        InputError: Unknown names, a format that was not published, nothing to pull.
        BaseMismatchError: Adapters of different bases; names both.
        IntegrityError: A damaged manifest.
    """
    pins, embedded = _pins(store, request)
    kept = {} if request.lock or current is None else {c: p for c, p in current.adapters.items() if c not in pins}
    if not pins and not kept:
        raise InputError(
            f"{store.url} has no adapter in channel {request.channel}", "publish one, or name another channel"
        )
    manifests = _manifests(store, request, {**kept, **pins}, embedded)
    base_id = request.base_id or (request.lock or current or _NO_LOCK).base_id
    chosen, base_id, skipped = _one_base(manifests, base_id, named=bool(request.concepts or request.lock), kept=kept)
    base = _base_manifest(store, request, current, base_id)
    selections = {
        concept: formats.select(request.formats, manifest, base, f"adapter {concept}")
        for concept, manifest in chosen.items()
    }
    all_pins = {**kept, **pins}
    items = [
        Item(
            concept,
            adapter_folder(request.target, concept),
            _prefix(concept, all_pins[concept]),
            m,
            selections[concept].adapter,
        )
        for concept, m in sorted(chosen.items())
    ]
    base_names = frozenset(name for selection in selections.values() for name in selection.base)
    if base is not None and base_names:
        items.append(Item(BASE_ITEM, base_folder(request.target), keys.mobile_file(base_id, ""), base, base_names))
    base_sha256 = sha256_of(base.to_json()) if base is not None and base_names else None
    lock = Lock(base_id, request.formats, {concept: all_pins[concept] for concept in sorted(chosen)}, base_sha256)
    return PullPlan(tuple(items), lock, skipped)


_NO_LOCK = Lock("", ("peft",), {})


def _prefix(concept: str, pin: Pin) -> str:
    return keys.adapter_version_prefix(concept, pin.version)


def _pins(store: ObjectStore, request: PullRequest) -> tuple[dict[str, Pin], dict[str, bytes]]:
    if request.lock is not None:
        unknown = sorted(set(request.concepts) - set(request.lock.adapters))
        if unknown:
            raise InputError(f"the lock has no adapter {unknown[0]}", "leave the name out, or pull without --lock")
        wanted = request.concepts or tuple(request.lock.adapters)
        return {concept: request.lock.adapters[concept] for concept in wanted}, {}
    return _read_pins(store, request)


def _read_pins(store: ObjectStore, request: PullRequest) -> tuple[dict[str, Pin], dict[str, bytes]]:
    """Pins of names or of a whole channel, with the manifests that came along."""
    listed: dict[str, ObjectInfo] = {}
    if not request.concepts:
        listed = registry.list_pointers(store, request.channel)
    elif len(request.concepts) >= _WORTH_A_LISTING:
        with suppress(StoreError):  # a store that cannot be listed
            listed = registry.list_pointers(store, request.channel)
    cache = PointerCache(store.url)

    seen = _seen_before(listed, request.channel, cache)

    def pin(name: str) -> tuple[str, Pin, bytes | None]:
        concept, _, ref = name.partition("@")
        try:
            keys.check_name(concept, "concept")
            known = seen.get(concept) if not ref else None
            channel = known or _read_channel(store, concept, ref or request.channel, listed if not ref else {}, cache)
        except ValueError as error:
            raise InputError(str(error), "write NAME, NAME@channel or NAME@version") from None
        if channel is not None:
            return concept, Pin(channel.target.version, channel.target.manifest_sha256), channel.manifest
        version = registry.resolve(store, concept, ref or request.channel)
        data = registry.read_manifest(store, concept, version).to_json()
        return concept, Pin(version, sha256_of(data)), data

    names = tuple(dict.fromkeys(request.concepts or listed))
    found = parallel_map_slow(pin, names, lambda name: name not in seen, request.workers)
    cache.save()
    return {concept: pin for concept, pin, _ in found}, {concept: data for concept, _, data in found if data}


def _seen_before(listed: Mapping[str, ObjectInfo], channel: str, cache: PointerCache) -> dict[str, Channel]:
    """Pointers that did not move since an earlier pull."""
    found = {concept: cache.get(keys.adapter_channel(concept, channel), info.etag) for concept, info in listed.items()}
    return {concept: pointer for concept, pointer in found.items() if pointer is not None}


def _read_channel(
    store: ObjectStore, concept: str, name: str, listed: Mapping[str, ObjectInfo], cache: PointerCache
) -> Channel | None:
    key = keys.adapter_channel(concept, name)
    try:
        data, etag = store.get_with_etag(key)
    except KeyError:
        return None
    channel = Channel.parse(data, f"{store.url}/{key}")
    if concept in listed and listed[concept].etag == etag:
        cache.put(key, etag, data)
    return channel


def _manifests(
    store: ObjectStore, request: PullRequest, pins: dict[str, Pin], embedded: Mapping[str, bytes]
) -> dict[str, Manifest]:
    at_hand = {
        concept: embedded.get(concept)
        or _local(adapter_folder(request.target, concept) / MANIFEST, pin.manifest_sha256)
        for concept, pin in pins.items()
    }

    def read(item: tuple[str, Pin]) -> tuple[str, Manifest]:
        concept, pin = item
        key = _prefix(concept, pin) + MANIFEST
        data = at_hand[concept]
        if data is None:
            try:
                data = store.get(key, sha256=pin.manifest_sha256)
            except KeyError:
                raise InputError(
                    f"{store.url} no longer holds version {pin.version} of {concept}", "pull it without --lock"
                ) from None
        manifest = Manifest.parse(data, f"{store.url}/{key}", request.trusted)
        registry.check_identity(manifest, concept, pin.version, f"{store.url}/{key}")
        return concept, manifest

    return dict(parallel_map_slow(read, tuple(pins.items()), lambda item: at_hand[item[0]] is None, request.workers))


def _local(path: Path, sha256: str) -> bytes | None:
    """The bytes of a local file if they have this digest."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if sha256_of(data) == sha256 else None


def _one_base(
    manifests: dict[str, Manifest], base_id: str, *, named: bool, kept: dict[str, Pin]
) -> tuple[dict[str, Manifest], str, tuple[str, ...]]:
    """Adapters of one base only: an app loads one. Unnamed adapters of other bases are left out."""
    bases = {concept: str(manifest.meta.get("base_id")) for concept, manifest in manifests.items()}
    if not base_id:
        found: Sequence[str] = sorted(set(bases.values()))
        if len(found) > 1:
            raise BaseMismatchError(
                f"these adapters belong to different bases: {', '.join(found)}",
                "choose one with --base, or name the adapters",
            )
        base_id = found[0]
    for concept, found_base in bases.items():
        if named or concept in kept:
            check_base_match(f"adapter {concept}", found_base, base_id)
    chosen = {concept: manifest for concept, manifest in manifests.items() if bases[concept] == base_id}
    if not chosen:
        raise InputError(
            f"no adapter of base {base_id} is published", f"there are bases {', '.join(sorted(set(bases.values())))}"
        )
    return chosen, base_id, tuple(sorted(set(manifests) - set(chosen)))


def _base_manifest(store: ObjectStore, request: PullRequest, current: Lock | None, base_id: str) -> Manifest | None:
    if not formats.needs_base(request.formats):
        return None
    pinned = next(
        (lock.base_manifest_sha256 for lock in (request.lock, current) if lock and lock.base_id == base_id), None
    )
    key = keys.mobile_file(base_id, MANIFEST)
    data = _local(base_folder(request.target) / MANIFEST, pinned) if pinned else None
    if data is None:
        try:
            data = store.get(key, sha256=pinned if request.lock else None)
        except KeyError:
            return None
    manifest = Manifest.parse(data, f"{store.url}/{key}")
    check_base_match(f"{store.url}/{key}", str(manifest.meta.get("base_id", base_id)), base_id)
    return manifest
