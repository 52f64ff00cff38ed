"""Channels: pointers (`latest`, `canary`, `prod`) to versions, moved by compare-and-swap, with their history."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from e2gan_cluster.errors import InputError, IntegrityError, StoreError
from e2gan_cluster.storage import canonical, keys
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.storage.checks import sha256_of

MAX_HISTORY = 100
MAX_EMBEDDED_BYTES = 64 * 1024
_ATTEMPTS = 200


@dataclass(frozen=True)
class Target:
    """What a channel points or pointed to.

    Attributes:
        version: Version of the adapter.
        manifest_sha256: Digest of the bytes of its manifest.
        moved_at: When the channel was moved there, ISO 8601, UTC.
    """

    version: str
    manifest_sha256: str
    moved_at: str


@dataclass(frozen=True)
class Channel:
    """A pointer.

    Attributes:
        target: Where it points.
        history: Where it pointed before, oldest first.
        manifest: The bytes of the target's manifest, so that a pull needs one request less; None where not at hand.
    """

    target: Target
    history: tuple[Target, ...] = ()
    manifest: bytes | None = None

    def to_json(self) -> bytes:
        """The bytes of the pointer object, with their own digest."""
        content: dict[str, Any] = {**vars(self.target), "history": [vars(target) for target in self.history]}
        if self.manifest is not None:
            content["manifest"] = canonical.parse(self.manifest, "manifest")
        return canonical.dump({**content, "digest": sha256_of(canonical.dump(content))})

    @classmethod
    def parse(cls, data: bytes, what: str) -> "Channel":
        """Read a pointer.

        Raises:
            IntegrityError: It is not one.
        """
        try:
            content = dict(canonical.parse(data, what))
            digest = content.pop("digest")
            if digest != sha256_of(canonical.dump(content)):
                raise IntegrityError(f"{what} was changed: its digest does not fit", "promote a version to it again")
            history = tuple(Target(**entry) for entry in content.pop("history"))
            manifest = canonical.dump(content.pop("manifest")) if "manifest" in content else None
            channel = cls(Target(**content), history, manifest)
            if manifest is not None and sha256_of(manifest) != channel.target.manifest_sha256:
                raise IntegrityError(f"{what} holds another manifest than it names", "promote a version to it again")
            for target in (channel.target, *channel.history):
                keys.check_name(target.version, "version")
                if not isinstance(target.manifest_sha256, str) or not isinstance(target.moved_at, str):
                    raise TypeError
        except (TypeError, KeyError, ValueError):
            raise IntegrityError(f"{what} is not a channel", "promote a version to it again") from None
        return channel


def read_channel(store: ObjectStore, concept: str, channel: str) -> Channel | None:
    """A concept's channel, or None if it was never set."""
    key = keys.adapter_channel(concept, channel)
    try:
        return Channel.parse(store.get(key), f"{store.url}/{key}")
    except KeyError:
        return None


def move_channel(
    store: ObjectStore,
    concept: str,
    channel: str,
    choose: Callable[[Channel | None], Target | None],
    manifest: bytes | None = None,
) -> Channel:
    """Point a channel elsewhere; loses to no racing writer and overwrites none unseen.

    Args:
        store: Where.
        concept: Concept name.
        channel: Channel name.
        choose: Gets the channel as it is now, gives the new target; None leaves it as it is. Called again after
            losing a race.
        manifest: Bytes of the new target's manifest.

    Returns:
        The channel as it stands afterwards.

    Raises:
        StoreError: Others moved it at every attempt.
    """

    def update(current: Channel | None) -> Channel | None:
        target = choose(current)
        if target is None:
            return None
        history = (*current.history, current.target) if current else ()
        embedded = manifest if manifest is not None and len(manifest) <= MAX_EMBEDDED_BYTES else None
        return Channel(target, history[-MAX_HISTORY:], embedded)

    return _swap(store, concept, channel, update)


def roll_back(store: ObjectStore, concept: str, channel: str) -> Channel:
    """Point a channel to where it pointed before; its last move is taken out of the history.

    Raises:
        InputError: It never pointed elsewhere.
    """

    def update(current: Channel | None) -> Channel:
        if current is None or not current.history:
            raise InputError(
                f"channel {channel} of {concept} has no earlier version",
                f"promote one: e2gan adapters promote {concept}",
            )
        return Channel(replace(current.history[-1], moved_at=now()), current.history[:-1])

    return _swap(store, concept, channel, update)


def _swap(
    store: ObjectStore, concept: str, channel: str, update: Callable[[Channel | None], Channel | None]
) -> Channel:
    key = keys.adapter_channel(concept, channel)
    what = f"{store.url}/{key}"
    for _ in range(_ATTEMPTS):
        try:
            data, etag = store.get_with_etag(key)
            current = Channel.parse(data, what)
        except KeyError:
            etag, current = None, None
        wanted = update(current)
        if wanted is None:
            assert current is not None
            return current
        if store.put_if_match(key, wanted.to_json(), etag):
            return wanted
    raise StoreError(f"{what}: lost {_ATTEMPTS} races in a row", "try again when fewer publishers move it")


def now() -> str:
    """This moment, ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
