"""Bundles: a folder of files with a manifest, published so that a reader sees all of it or nothing.

Files go first, each create-only; the manifest goes last, create-only. A bundle without manifest does not exist.

Example:
    publish_bundle(store, "base/0123456789ab/", {"generator.safetensors": path}, {"kind": "base"})
    files = read_bundle(store, "base/0123456789ab/").files
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2gan_cluster.errors import InputError, IntegrityError
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.storage.checks import sha256_of, sha256_of_file
from e2gan_cluster.storage.manifest import MANIFEST, FileEntry, Manifest


@dataclass(frozen=True)
class Bundle:
    """A bundle's manifest and (some of) its files, verified."""

    manifest: Manifest
    files: Mapping[str, bytes]


def publish_bundle(
    store: ObjectStore,
    prefix: str,
    files: Mapping[str, bytes | Path],
    meta: Mapping[str, Any],
    sign_key: Path | None = None,
) -> Manifest:
    """Publish files and their manifest under a prefix; doing it again changes nothing.

    Args:
        store: Where.
        prefix: Folder key, ending in ``/``; named by content, so that it is never used for other files.
        files: Relative path -> content or local file.
        meta: Facts for the manifest.
        sign_key: PEM file of an Ed25519 private key.

    Returns:
        The manifest that stands there now: ours, or that of an equal earlier publish.

    Raises:
        InputError: A file or fact that cannot be published.
        IntegrityError: The prefix holds other bytes.
        StoreError: The store gave up; nothing became visible, and the same call goes on later.
    """
    manifest = Manifest.build(files, meta, sign_key)
    earlier = find_manifest(store, prefix)
    if earlier is None:
        for entry in manifest.files:
            _put(store, prefix, entry, files[entry.path])
        if store.put_new(prefix + MANIFEST, manifest.to_json()):
            _restore_collected(store, prefix, manifest, files)
            return manifest
        earlier = read_manifest(store, prefix)
    if earlier.files != manifest.files:
        raise IntegrityError(
            f"{store.url}/{prefix} was published with other files", "publish under another name; versions never change"
        )
    return earlier


def _put(store: ObjectStore, prefix: str, entry: FileEntry, content: bytes | Path) -> None:
    key = prefix + entry.path
    created = store.put_new_file(key, content) if isinstance(content, Path) else store.put_new(key, content)
    if not created:  # left by a publish that was interrupted, or made by an equal one this moment
        try:
            store.get(key, sha256=entry.sha256, size=entry.size)
        except IntegrityError as error:
            raise IntegrityError(
                f"{store.url}/{key} holds other bytes: {error.message}",
                "remove what an interrupted publish left there with: e2gan adapters gc",
            ) from None


def _restore_collected(store: ObjectStore, prefix: str, manifest: Manifest, files: Mapping[str, bytes | Path]) -> None:
    """Put back files that a garbage collection removed in the moment before the manifest appeared."""
    present = {info.key for info in store.list(prefix)}
    for entry in manifest.files:
        if prefix + entry.path not in present:
            _put(store, prefix, entry, files[entry.path])


def find_manifest(store: ObjectStore, prefix: str, trusted: str | None = None) -> Manifest | None:
    """The manifest under a prefix, or None if no bundle is published there.

    Raises:
        IntegrityError: It is damaged or not signed by ``trusted``.
    """
    try:
        data = store.get(prefix + MANIFEST)
    except KeyError:
        return None
    return Manifest.parse(data, f"{store.url}/{prefix}{MANIFEST}", trusted)


def read_manifest(store: ObjectStore, prefix: str, trusted: str | None = None) -> Manifest:
    """The manifest under a prefix.

    Raises:
        InputError: No bundle is published there.
        IntegrityError: It is damaged or not signed by ``trusted``.
    """
    manifest = find_manifest(store, prefix, trusted)
    if manifest is None:
        raise InputError(f"nothing is published at {store.url}/{prefix}", "check the name, or publish it first")
    return manifest


def read_bundle(store: ObjectStore, prefix: str, names: Collection[str] | None = None) -> Bundle:
    """Manifest and files of a bundle, every byte verified.

    Args:
        store: Where.
        prefix: Folder key, ending in ``/``.
        names: Only these files; None: all.

    Raises:
        InputError: No such bundle, or it has no such file.
        IntegrityError: Bytes differ from the manifest.
    """
    manifest = read_manifest(store, prefix)
    files: dict[str, bytes] = {}
    for name in [entry.path for entry in manifest.files] if names is None else names:
        entry = manifest.entry(name)
        if entry is None:
            raise InputError(f"{store.url}/{prefix} has no {name}", "publish it again with that file")
        try:
            files[name] = store.get(prefix + name, sha256=entry.sha256, size=entry.size)
        except KeyError:
            raise IntegrityError(
                f"{store.url}/{prefix}{name} is missing", "restore it or publish a new version"
            ) from None
    return Bundle(manifest, files)


def local_manifest(folder: Path, trusted: str | None = None) -> Manifest:
    """The manifest in a local folder.

    Raises:
        IntegrityError: Missing, damaged, or not signed by ``trusted``.
    """
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise IntegrityError(f"{path} is missing", "fetch the folder again")
    return Manifest.parse(path.read_bytes(), str(path), trusted)


def check_folder(folder: Path, manifest: Manifest, names: Collection[str] | None = None) -> None:
    """Compare a local folder with a manifest: nothing changed, missing, added or linked.

    Args:
        folder: Holds ``manifest.json`` and files.
        manifest: What it must be.
        names: The files that must be there (of those in the manifest); None: all.

    Raises:
        IntegrityError: Names the first file that is wrong.
    """
    wanted = {entry.path: entry for entry in manifest.files if names is None or entry.path in names}
    for path in walk_files(folder):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST and name not in wanted:
            raise IntegrityError(f"{path} was added: the manifest does not list it here", "remove it, or pull again")
    for name, entry in wanted.items():
        path = folder / name
        if not path.is_file():
            raise IntegrityError(f"{path} is missing", "pull or fetch it again")
        if path.stat().st_size != entry.size or sha256_of_file(path) != entry.sha256:
            raise IntegrityError(f"{path} was changed: it does not fit the manifest", "pull or fetch it again")
    if sha256_of((folder / MANIFEST).read_bytes()) != sha256_of(manifest.to_json()):
        raise IntegrityError(f"{folder / MANIFEST} was changed", "pull or fetch it again")


def walk_files(folder: Path) -> list[Path]:
    """All files below a folder.

    Raises:
        IntegrityError: A symbolic link or a special file is among them.
    """
    found: list[Path] = []
    for base, folders, names in os.walk(folder, followlinks=False):
        for name in [*folders, *names]:
            path = Path(base) / name
            if path.is_symlink():
                raise IntegrityError(f"{path} is a symbolic link", "published folders hold plain files only: remove it")
            if name in names:
                if not path.is_file():
                    raise IntegrityError(f"{path} is not a plain file", "remove it")
                found.append(path)
    return sorted(found)
