"""``e2gan.lock``: exactly which adapter versions a folder holds, so that an app's build is repeatable.

Keep it under version control; ``e2gan pull --lock e2gan.lock`` brings back the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2gan_cluster.errors import InputError, IntegrityError
from e2gan_cluster.storage import canonical, keys
from e2gan_cluster.storage.formats import PullFormat, check_formats

LOCK = "e2gan.lock"
LOCK_FORMAT = 1


@dataclass(frozen=True)
class Pin:
    """One adapter of a lock.

    Attributes:
        version: Its version.
        manifest_sha256: Digest of the bytes of its manifest.
    """

    version: str
    manifest_sha256: str


@dataclass(frozen=True)
class Lock:
    """What a pulled folder holds.

    Attributes:
        base_id: Base of all adapters.
        formats: Export formats.
        adapters: Concept -> pin.
        base_manifest_sha256: Digest of the manifest of the base's files; None where no format needs them.
    """

    base_id: str
    formats: tuple[PullFormat, ...]
    adapters: Mapping[str, Pin]
    base_manifest_sha256: str | None = None

    def to_json(self) -> bytes:
        """The bytes of the file."""
        return canonical.dump(
            {
                "lock_format": LOCK_FORMAT,
                "base_id": self.base_id,
                "base_manifest_sha256": self.base_manifest_sha256,
                "formats": list(self.formats),
                "adapters": {concept: vars(pin) for concept, pin in self.adapters.items()},
            }
        )

    @classmethod
    def parse(cls, data: bytes, what: str) -> "Lock":
        """Read a lock.

        Raises:
            IntegrityError: It is damaged or was edited by hand.
            InputError: It is of a newer program.
        """
        content = canonical.parse(data, what)
        if isinstance(content, dict) and content.get("lock_format") not in (None, LOCK_FORMAT):
            raise InputError(f"{what} is of lock format {content['lock_format']}", "use a newer e2gan")
        try:
            lock = cls(
                keys.check_name(content["base_id"], "base_id"),
                check_formats(content["formats"]),
                {keys.check_name(name, "concept"): _pin(pin) for name, pin in content["adapters"].items()},
                content["base_manifest_sha256"],
            )
            same = lock.to_json() == data
        except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
            raise IntegrityError(
                f"{what} is not a lock file: {str(error)[:200]}", "restore it, or pull again"
            ) from None
        if not same:
            raise IntegrityError(f"{what} was edited or damaged", "restore it, or delete it and pull again")
        return lock


def _pin(content: Mapping[str, Any]) -> Pin:
    pin = Pin(**content)
    keys.check_name(pin.version, "version")
    if not isinstance(pin.manifest_sha256, str) or len(pin.manifest_sha256) != 64:
        raise ValueError("manifest_sha256 is malformed")
    return pin


def read_lock(path: Path) -> Lock | None:
    """The lock at a path, or None if there is none.

    Raises:
        IntegrityError: It is damaged.
    """
    try:
        return Lock.parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the path") from None
