"""Manifests: what a published folder holds, byte for byte.

A manifest is JSON with one spelling and its own digest, so a changed byte in it shows as surely as one in the files.

Example:
    manifest = Manifest.build({"adapter_config.json": b"{}"}, {"concept": "oil"})
    assert Manifest.parse(manifest.to_json(), "manifest.json") == manifest
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from e2gan_cluster.errors import InputError, IntegrityError
from e2gan_cluster.storage import canonical, keys, signing
from e2gan_cluster.storage.checks import sha256_of, sha256_of_file
from e2gan_cluster.storage.signing import Signature

MANIFEST = "manifest.json"
MAX_FILES = 10_000
KINDS = (
    ".safetensors", ".json", ".md", ".txt", ".png", ".jpg", ".webp", ".html", ".yaml",
    ".onnx", ".onnx_adapter", ".ort", ".mlpackage.zip",
)  # fmt: skip
"""Endings of the files a published folder may hold: nothing that runs code when it is loaded."""

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib")


@dataclass(frozen=True, order=True)
class FileEntry:
    """One file.

    Attributes:
        path: Relative path with ``/``.
        size: Bytes.
        sha256: Hex digest.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Files and facts of a published folder.

    Attributes:
        files: Sorted by path.
        meta: Facts (concept, base_id, metrics, ...); plain JSON.
        signature: Optional Ed25519 signature of files and meta.
    """

    files: tuple[FileEntry, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    signature: Signature | None = None

    @classmethod
    def build(
        cls, files: Mapping[str, bytes | Path], meta: Mapping[str, Any], sign_key: Path | None = None
    ) -> "Manifest":
        """Describe files.

        Raises:
            InputError: A name, kind or fact that a manifest cannot hold.
        """
        entries = (_entry(path, content) for path, content in files.items())
        try:
            manifest = cls(check_entries(entries, MANIFEST), canonical.parse(canonical.dump(dict(meta)), "meta"))
        except (ValueError, IntegrityError) as error:
            raise InputError(f"cannot be published: {error}") from None
        return replace(manifest, signature=signing.sign(manifest.payload, sign_key)) if sign_key else manifest

    @classmethod
    def parse(cls, data: bytes, what: str, trusted: str | None = None) -> "Manifest":
        """Read a manifest and verify its digest and its signature, if any.

        Args:
            data: The bytes of a manifest.json.
            what: Where it stands, for messages.
            trusted: Public key that must have signed it; None: unsigned is fine.

        Raises:
            IntegrityError: Damaged, edited, hostile, or not signed by ``trusted``.
        """
        content = canonical.parse(data, what)
        if not isinstance(content, dict) or set(content) - {"signature"} != {"digest", "files", "meta"}:
            raise IntegrityError(f"{what} is not a manifest", "fetch it again, or publish a new version")
        try:
            entries = [FileEntry(**entry) for entry in content["files"]]
            signature = Signature(**content["signature"]) if "signature" in content else None
            meta = dict(content["meta"])
        except (TypeError, ValueError):
            raise IntegrityError(f"{what} is not a manifest", "fetch it again, or publish a new version") from None
        manifest = cls(check_entries(entries, what), meta, signature)
        if manifest.digest != content["digest"]:
            raise IntegrityError(
                f"{what} was changed: its digest does not fit", "fetch it again, or publish a new version"
            )
        if signature is not None:
            signing.check(manifest.payload, signature, what, trusted)
        elif trusted is not None:
            raise IntegrityError(f"{what} is not signed", "ask its publisher to sign (`publish.sign_key`)")
        if manifest.to_json() != data:  # entries out of order
            raise IntegrityError(f"{what} is not in the form this program writes", "fetch it again")
        return manifest

    @cached_property
    def payload(self) -> bytes:
        """What digest and signature cover."""
        return canonical.dump({"files": [vars(entry) for entry in self.files], "meta": self.meta})

    @cached_property
    def digest(self) -> str:
        """sha256 over files and meta."""
        return sha256_of(self.payload)

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(entry.size for entry in self.files)

    def to_json(self) -> bytes:
        """The bytes of ``manifest.json``."""
        return self._json

    @cached_property
    def _json(self) -> bytes:
        content: dict[str, Any] = {"digest": self.digest, "files": [vars(e) for e in self.files], "meta": self.meta}
        if self.signature is not None:
            content["signature"] = vars(self.signature)
        return canonical.dump(content)

    def entry(self, path: str) -> FileEntry | None:
        """The entry of one file, if there."""
        return next((entry for entry in self.files if entry.path == path), None)


def version_id(files: Iterable[FileEntry]) -> str:
    """Version of a set of files: the same bytes under the same names give the same version."""
    return sha256_of(canonical.dump(sorted([entry.path, entry.sha256] for entry in files)))[:12]


def check_entries(entries: Iterable[FileEntry], what: str) -> tuple[FileEntry, ...]:
    """Entries sorted by path, if every one may be written below a folder.

    Raises:
        IntegrityError: A hostile path, a twin, a wrong type, or a kind of file that is never published.
    """
    try:
        found = tuple(sorted(entries))
    except TypeError:
        raise IntegrityError(f"{what}: a file entry has values of the wrong type") from None
    if len(found) > MAX_FILES:
        raise IntegrityError(f"{what} lists {len(found)} files, at most {MAX_FILES} are read")
    taken: set[str] = set()
    for entry in found:
        _check_entry(entry, what)
        folded = entry.path.casefold()  # macOS and Windows take A and a for one file
        if folded in taken:
            raise IntegrityError(f"{what} lists {entry.path!r} twice")
        taken.add(folded)
    for path in taken:
        parts = path.split("/")
        if any("/".join(parts[:n]) in taken for n in range(1, len(parts))):
            raise IntegrityError(f"{what} lists {path!r} below a file")
    return found


def _check_entry(entry: FileEntry, what: str) -> None:
    path, size, sha256 = entry.path, entry.size, entry.sha256
    if not isinstance(path, str) or type(size) is not int or not isinstance(sha256, str):
        raise IntegrityError(f"{what}: a file entry has values of the wrong type")
    try:
        keys.check_key(path)
    except ValueError as error:
        raise IntegrityError(f"{what}: unsafe path: {error}") from None
    if any(part.startswith(".") for part in path.split("/")) or ":" in path or path.casefold() == MANIFEST:
        raise IntegrityError(f"{what}: unsafe path {path!r}")
    if size < 0 or not _SHA256.match(sha256):
        raise IntegrityError(f"{what}: {path!r} has a malformed size or sha256")
    if path.casefold().endswith(_PICKLES):
        raise IntegrityError(f"{what}: {path!r} may hold a pickle, which runs code when loaded", "use safetensors")
    if not path.casefold().endswith(KINDS):
        raise IntegrityError(f"{what}: {path!r} is of a kind that is never published", f"allowed: {', '.join(KINDS)}")


def _entry(path: str, content: bytes | Path) -> FileEntry:
    if isinstance(content, Path):
        return FileEntry(path, content.stat().st_size, sha256_of_file(content))
    return FileEntry(path, len(content), sha256_of(content))
