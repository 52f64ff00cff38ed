"""Checkpoints of a training under way: tensors first, then the metadata that makes them count.

``<prefix><images>.safetensors`` is worth nothing without ``<prefix><images>.json``, which names its size and sha256.
The latest few are kept, and the best by metric. A damaged one is passed over for the one before.

Example:
    save_checkpoint(store, prefix, state.state_dict(), images=2000, metric=0.21, keep=2)
    found = load_newest(store, prefix, note=print)
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load, save

from e2gan_cluster.errors import IntegrityError, StoreError
from e2gan_cluster.storage.base import ObjectStore

_TENSORS, _META = ".safetensors", ".json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        images: Images seen when it was saved.
        metric: Held-out metric at that point, lower is better; None if none was taken.
        tensors: What was saved.
    """

    images: int
    metric: float | None
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class _Record:
    key: str
    images: int
    metric: float | None
    size: int
    sha256: str


def save_checkpoint(
    store: ObjectStore,
    prefix: str,
    tensors: Mapping[str, torch.Tensor],
    *,
    images: int,
    metric: float | None,
    keep: int,
    note: Callable[[str], None],
) -> None:
    """Saves a checkpoint, then removes those that are neither among the latest nor the best.

    Args:
        store: Where to.
        prefix: Folder of this training.
        tensors: State; must be contiguous and on the CPU.
        images: Images seen.
        metric: Held-out metric, lower is better.
        keep: Latest checkpoints to keep.
        note: Told when an old checkpoint could not be removed; training goes on.

    Raises:
        StoreError: The checkpoint itself could not be written.
    """
    key = f"{prefix}{images:012d}"
    data = save(dict(tensors))
    store.put(key + _TENSORS, data)
    record = {"images": images, "metric": metric, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    store.put(key + _META, json.dumps(record, indent=1).encode())
    try:
        _purge(store, prefix, keep)
    except (StoreError, OSError) as error:
        note(f"old checkpoints under {prefix} could not be removed: {error}")


def load_newest(store: ObjectStore, prefix: str, note: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if there is none.

    Args:
        store: Where from.
        prefix: Folder of the training.
        note: Told of every damaged checkpoint that was passed over.
    """
    for record in reversed(_records(store, prefix, note)):
        checkpoint = _load(store, record, note)
        if checkpoint is not None:
            return checkpoint
    return None


def load_best(store: ObjectStore, prefix: str, note: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint with the lowest metric that is whole; None if none has a metric."""
    measured = [r for r in _records(store, prefix, note) if r.metric is not None]
    for record in sorted(measured, key=lambda r: r.metric or 0.0):
        checkpoint = _load(store, record, note)
        if checkpoint is not None:
            return checkpoint
    return None


def delete_checkpoints(store: ObjectStore, prefix: str, note: Callable[[str], None]) -> None:
    """Removes all checkpoints of a finished training; failing to is told and harmless."""
    try:
        for info in sorted(store.list(prefix), key=lambda i: not i.key.endswith(_META)):
            store.delete(info.key)
    except (StoreError, OSError) as error:
        note(f"checkpoints under {prefix} could not be removed: {error}")


def _load(store: ObjectStore, record: _Record, note: Callable[[str], None]) -> Checkpoint | None:
    try:
        data = store.get(record.key + _TENSORS, sha256=record.sha256, size=record.size)
    except (KeyError, IntegrityError) as error:
        note(f"checkpoint {record.key} is damaged and passed over: {error}")
        return None
    return Checkpoint(record.images, record.metric, load(data))


def _records(store: ObjectStore, prefix: str, note: Callable[[str], None]) -> list[_Record]:
    """Metadata of all checkpoints, oldest first."""
    records = []
    for info in store.list(prefix):
        if not info.key.endswith(_META):
            continue
        try:
            fields = json.loads(store.get(info.key))
            record = _Record(
                info.key.removesuffix(_META), int(fields["images"]), fields["metric"], int(fields["size"]),
                str(fields["sha256"]),
            )  # fmt: skip
        except (KeyError, ValueError, TypeError):
            note(f"checkpoint {info.key} cannot be read and is passed over")
            continue
        records.append(record)
    return sorted(records, key=lambda r: r.images)


def _purge(store: ObjectStore, prefix: str, keep: int) -> None:
    records = _records(store, prefix, lambda _: None)
    measured = [r for r in records if r.metric is not None]
    kept = {r.key for r in records[-keep:]} | {r.key for r in sorted(measured, key=lambda r: r.metric or 0.0)[:1]}
    for record in records:
        if record.key not in kept:
            store.delete(record.key + _META)
            store.delete(record.key + _TENSORS)
