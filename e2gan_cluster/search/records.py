"""What the search writes down: one record per trial, one per concept. Light: no torch, no Ray.

Records are JSON in the store, create-only, and are the truth a killed search is resumed from.
``parse(record.to_json()) == record`` holds for both.

Example:
    >>> TrialRecord.parse(store.get(keys.search_trial(concept, fingerprint, "r2-n100-s0"))).metric
    0.182
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

from e2gan_cluster.errors import IntegrityError
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore

TrialState = Literal["done", "screened", "hopeless"]
ConceptState = Literal["done", "failed", "stopped"]
_T = TypeVar("_T", "TrialRecord", "ConceptResult")


@dataclass(frozen=True)
class TrialSpec:
    """One training of one concept's adapter; its result depends on this, the config and the store's finished parts.

    Attributes:
        concept: Name of the concept.
        multiplier: Rung of the rank ladder: the start ranks are multiplied by it.
        data_size: Rung of the data ladder: training pairs.
        seed_index: Repetition of the rung.
        stop_above: (share of the training, metric): worse than this there = hopeless, stop.
        until: Share of the training after which it ends; below 1 = only to compare rungs.
        after: Share at which an earlier trial of the same training ended: it is continued from there. The result is
            that of a training from the start.
        init: Key prefix of the adapter to start from, empty = zero change.
        final: Instead of training, measure the pick and write the concept's result.
    """

    concept: str
    multiplier: int = 0
    data_size: int = 0
    seed_index: int = 0
    stop_above: tuple[tuple[float, float], ...] = ()
    init: str | None = None
    final: bool = False
    until: float = 1.0
    after: float = 0.0

    @property
    def training_id(self) -> str:
        """Name of the training; a trial that ends early is the beginning of the whole one."""
        return f"r{self.multiplier}-n{self.data_size}-s{self.seed_index}"

    @property
    def trial_id(self) -> str:
        """Name of the trial within its concept's search, usable in a key."""
        if self.final:
            return "final"
        return self._id_at(self.until)

    @property
    def continued_id(self) -> str | None:
        """Name of the trial that is continued, None for a fresh start."""
        return self._id_at(self.after) if self.after else None

    def _id_at(self, until: float) -> str:
        return self.training_id if until >= 1 else f"{self.training_id}-p{round(1000 * until)}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TrialSpec":
        """Inverse of `to_dict`."""
        stops = tuple((float(fraction), float(metric)) for fraction, metric in data["stop_above"])
        return cls(**{**data, "stop_above": stops})


@dataclass(frozen=True)
class Point:
    """One evaluation during a trial.

    Attributes:
        fraction: Share of the training.
        images: Images seen.
        metric: The search's metric on held-out photos.
        losses: Mean training losses since the point before.
    """

    fraction: float
    images: int
    metric: float
    losses: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredFile:
    """Name, size and sha256 of a file that belongs to a trial."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial.

    Attributes:
        spec: What was asked.
        state: ``done``; ``screened``: ended at the share of the training that was asked for; ``hopeless``: stopped
            before.
        metric: Last value of the search's metric, lower is better.
        curve: All evaluations.
        ranks: Layer -> LoRA rank.
        images: Training images seen, those before a continued trial not counted.
        seconds: Wall time of training and evaluation.
        trained_parameters: LoRA weights.
        files: The adapter's files, under `keys.search_trial_adapter`; none for a hopeless trial.
        resume: Training state beside them, for a trial that continues this one; removed when the concept is done.
    """

    spec: TrialSpec
    state: TrialState
    metric: float
    curve: tuple[Point, ...]
    ranks: dict[str, int]
    images: int
    seconds: float
    trained_parameters: int
    files: tuple[StoredFile, ...] = ()
    resume: StoredFile | None = None

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the adapter's weights."""
        return sum(f.size for f in self.files if f.name.endswith(".safetensors") and f.name.startswith("adapter"))

    def at(self, fraction: float) -> float | None:
        """Metric at a share of the training, None if it was not evaluated there."""
        return next((p.metric for p in self.curve if math.isclose(p.fraction, fraction, abs_tol=1e-6)), None)

    def row(self) -> dict[str, Any]:
        """The trial as a row of its concept's ladder table."""
        return {
            "trial": self.spec.trial_id, "multiplier": self.spec.multiplier, "data_size": self.spec.data_size,
            "seed": self.spec.seed_index, "until": self.spec.until, "state": self.state, "metric": self.metric,
            "images": self.images, "seen": self.curve[-1].images if self.curve else self.images,
            "seconds": round(self.seconds, 3), "adapter_bytes": self.adapter_bytes,
            "parameters": self.trained_parameters,
        }  # fmt: skip

    def to_json(self) -> bytes:
        """Canonical JSON."""
        return _dump(self)

    @classmethod
    def parse(cls, data: bytes) -> "TrialRecord":
        """Inverse of `to_json`.

        Raises:
            IntegrityError: These bytes are not a trial record.
        """
        return _load(cls, data, _trial_from)


PARITY_PHOTOS = 8
"""Held-out photos on which every exported file is compared with torch and with the search."""


@dataclass(frozen=True)
class ConceptResult:
    """How a concept's search ended.

    Attributes:
        concept: Name.
        state: ``done``; ``failed`` with a reason; ``stopped``: budget or signal, the same command goes on.
        prompt: Edit instruction.
        base_id: Base the adapter belongs to.
        fingerprint: Of the search; with `concept` it names the folder `keys.search_prefix`.
        pick: Trial whose adapter is the result.
        rank_multiplier: Rung of the rank ladder.
        ranks: Layer -> LoRA rank of the pick.
        data_size: Training pairs of the pick.
        metric_name: Metric that decided.
        metric: Its value for the pick on held-out photos.
        metrics: Metrics of the pick on held-out photos.
        base_metrics: Metrics of the base without an adapter, given the new prompt.
        identity_metrics: Metrics of the unchanged photo.
        table: One row per trial: trial, multiplier, data_size, seed, until, state, metric, images, seen (with
            those of the trial it continues), seconds, adapter_bytes, parameters.
        trials: Trials trained.
        seconds: Worker seconds of all trials.
        images: Training images of all trials.
        adapter_bytes: Size of the pick's weights.
        adapter_key_prefix: Where the pick's files lie.
        files: The pick's files.
        init: Concept whose adapter this search started from, None = cold.
        heldout: Held-out photos measured on.
        parity_metrics: Metrics of the pick on the first `PARITY_PHOTOS` of them, found again in its exported files.
        failure: Reason, for ``failed``.
    """

    concept: str
    state: ConceptState
    prompt: str = ""
    base_id: str = ""
    fingerprint: str = ""
    pick: str = ""
    rank_multiplier: int = 0
    ranks: dict[str, int] = field(default_factory=dict)
    data_size: int = 0
    metric_name: str = ""
    metric: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    base_metrics: dict[str, float] = field(default_factory=dict)
    identity_metrics: dict[str, float] = field(default_factory=dict)
    table: tuple[dict[str, Any], ...] = ()
    trials: int = 0
    seconds: float = 0.0
    images: int = 0
    adapter_bytes: int = 0
    adapter_key_prefix: str = ""
    files: tuple[StoredFile, ...] = ()
    init: str | None = None
    heldout: int = 0
    parity_metrics: dict[str, float] = field(default_factory=dict)
    failure: str | None = None

    @property
    def compared(self) -> list[dict[str, Any]]:
        """Rows of the table whose metrics can be compared: all after the same share of the training."""
        screened = [row for row in self.table if row.get("state") == "screened"]
        return screened or [row for row in self.table if row.get("state") == "done" and row.get("metric") is not None]

    @property
    def training_images(self) -> int:
        """Images of one whole training, that of the pick."""
        return next((row.get("seen", row["images"]) for row in self.table if row.get("trial") == self.pick), 0)

    def to_json(self) -> bytes:
        """Canonical JSON."""
        return _dump(self)

    @classmethod
    def parse(cls, data: bytes) -> "ConceptResult":
        """Inverse of `to_json`.

        Raises:
            IntegrityError: These bytes are not a result.
        """
        return _load(cls, data, _result_from)


def read_result(store: ObjectStore, concept: str, fingerprint: str) -> ConceptResult | None:
    """The finished result of a concept's search, or None.

    Raises:
        IntegrityError: The record is damaged.
    """
    try:
        return ConceptResult.parse(store.get(keys.search_result(concept, fingerprint)))
    except KeyError:
        return None


def read_trials(store: ObjectStore, concept: str, fingerprint: str) -> dict[str, TrialRecord]:
    """All finished trials of a concept's search, by trial id.

    Raises:
        IntegrityError: A record is damaged.
    """
    prefix = f"{keys.search_prefix(concept, fingerprint)}trials/"
    records = (
        TrialRecord.parse(store.get(info.key))
        for info in store.list(prefix)
        if info.key.endswith(".json") and "/" not in info.key.removeprefix(prefix)
    )
    return {record.spec.trial_id: record for record in records}


def iter_results(store: ObjectStore, concept: str) -> Iterator[ConceptResult]:
    """Finished results of a concept under every search setting."""
    prefix = f"search/{keys.check_name(concept, 'concept')}/"
    for info in store.list(prefix):
        if info.key.endswith("/result.json"):
            yield ConceptResult.parse(store.get(info.key))


def _dump(record: "TrialRecord | ConceptResult") -> bytes:
    return json.dumps(asdict(record), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _load(cls: type[_T], data: bytes, build: Any) -> _T:
    try:
        raw = json.loads(data)
        unknown = set(raw) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
        return build(raw)
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityError(
            f"a stored {cls.__name__} cannot be read: {error}",
            "delete the search folder of this concept, it is computed again",
        ) from error


def _trial_from(raw: dict[str, Any]) -> TrialRecord:
    return TrialRecord(
        **{
            **raw,
            "spec": TrialSpec.from_dict(raw["spec"]),
            "curve": tuple(Point(**point) for point in raw["curve"]),
            "files": tuple(StoredFile(**file) for file in raw["files"]),
            "resume": StoredFile(**raw["resume"]) if raw.get("resume") else None,
        }
    )


def _result_from(raw: dict[str, Any]) -> ConceptResult:
    files = tuple(StoredFile(**file) for file in raw["files"])
    return ConceptResult(**{**raw, "files": files, "table": tuple(raw["table"])})
