"""Garbage in a registry: files of publishes that never finished, unfinished uploads, versions no channel knows.

Example:
    for item in collect(store, remove=False):
        print(item.key, item.reason)
"""

import time
from dataclasses import dataclass

from e2gan_cluster.storage import channels, keys
from e2gan_cluster.storage.base import ObjectInfo, ObjectStore
from e2gan_cluster.storage.manifest import MANIFEST

DAY_S = 86_400.0


@dataclass(frozen=True)
class Garbage:
    """Something that may go.

    Attributes:
        key: Its key, or where a leftover lies.
        num_bytes: Its size, 0 where unknown.
        reason: Why nobody needs it.
    """

    key: str
    num_bytes: int
    reason: str


def collect(
    store: ObjectStore, *, remove: bool, older_than_s: float = DAY_S, unreferenced: bool = False
) -> list[Garbage]:
    """Find garbage and, on request, remove it.

    Args:
        store: Registry.
        remove: Delete what is found.
        older_than_s: Younger files are left alone, since a publish may be under way; seconds.
        unreferenced: Also whole versions that no channel points to or remembers in its history.

    Returns:
        What was found (and removed).
    """
    by_version: dict[tuple[str, str], list[ObjectInfo]] = {}
    pointers: list[tuple[str, str]] = []
    for info in store.list("adapters/"):
        parts = info.key.split("/")
        if len(parts) >= 4:
            by_version.setdefault((parts[1], parts[2]), []).append(info)
        elif len(parts) == 3 and parts[2].endswith(".json"):
            pointers.append((parts[1], parts[2].removesuffix(".json")))
    newest_s = time.time() - older_than_s
    garbage: list[Garbage] = []
    for (concept, version), found in by_version.items():
        if max(info.modified_s for info in found) > newest_s:
            continue
        prefix = keys.adapter_version_prefix(concept, version)
        whole = prefix + MANIFEST in {info.key for info in found}
        if not whole:
            garbage += _orphans(store, prefix, found, remove)
        elif unreferenced and version not in _known(store, concept, pointers):
            garbage += _version(store, prefix, found, remove)
    leftovers = store.leftovers(older_than_s, remove=remove)
    return garbage + [Garbage(item.name, 0, item.kind) for item in leftovers]


def _orphans(store: ObjectStore, prefix: str, found: list[ObjectInfo], remove: bool) -> list[Garbage]:
    if remove and store.head(prefix + MANIFEST) is not None:
        return []  # its publish finished this moment
    return [_drop(store, info, "its publish never finished", remove) for info in found]


def _version(store: ObjectStore, prefix: str, found: list[ObjectInfo], remove: bool) -> list[Garbage]:
    # The manifest goes first: from then on the version does not exist.
    ordered = sorted(found, key=lambda info: info.key != prefix + MANIFEST)
    return [_drop(store, info, "no channel points to this version", remove) for info in ordered]


def _drop(store: ObjectStore, info: ObjectInfo, reason: str, remove: bool) -> Garbage:
    if remove:
        store.delete(info.key)
    return Garbage(info.key, info.size, reason)


def _known(store: ObjectStore, concept: str, pointers: list[tuple[str, str]]) -> set[str]:
    known: set[str] = set()
    for name in [channel for owner, channel in pointers if owner == concept]:
        channel = channels.read_channel(store, concept, name)
        if channel is not None:
            known.update(target.version for target in (channel.target, *channel.history))
    return known
