"""The stored result of the crucial-layer analysis of a base, and the start ranks that follow. Light: no torch.

Example:
    >>> table = load_layers(store, base_id)
    >>> start_ranks(config.search, table)
    {'downsample.0.conv.1': 2, ...}
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from e2gan_cluster.config import SearchConfig
from e2gan_cluster.errors import ConfigError, InputError, IntegrityError
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore

TABLE, PICTURE = "layers.json", "layers.png"
MAX_FACTOR = 4


@dataclass(frozen=True)
class PartRow:
    """One part of the generator.

    Attributes:
        part: Name.
        layers: Names of its layers that LoRA can adapt.
        parameters: LoRA weights of the part at `LayerTable.rank`.
        metric: Mean metric of its probes; None without analysis.
        gain: Share of the base's metric that the part wins (``alone``), or that is lost without it (``without``).
    """

    part: str
    layers: tuple[str, ...]
    parameters: int
    metric: float | None = None
    gain: float = 0.0

    @property
    def gain_per_1000(self) -> float:
        """Gain per 1,000 LoRA weights."""
        return 1000 * self.gain / self.parameters


@dataclass(frozen=True)
class LayerTable:
    """What adapting each part of one base is worth.

    Attributes:
        base_id: The base.
        rows: One per part, in the order of the generator.
        parts: Adapted parts, in the order of the generator.
        factors: Adapted part -> multiple of ``search.start_rank``.
        rank: LoRA rank of the probes.
        metric_name: Metric of the probes.
        base_metric: Its mean without an adapter.
        all_metric: Its mean with all parts adapted.
        mode: ``alone``, ``without``, or ``given``: no analysis, parts as the config names them.
        concepts: Probe concepts.
        images: Training images per probe.
    """

    base_id: str
    rows: tuple[PartRow, ...]
    parts: tuple[str, ...]
    factors: dict[str, int]
    rank: int
    metric_name: str = ""
    base_metric: float | None = None
    all_metric: float | None = None
    mode: str = "given"
    concepts: tuple[str, ...] = ()
    images: int = 0

    def to_json(self) -> bytes:
        """Canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, indent=1, allow_nan=False).encode()

    @classmethod
    def parse(cls, data: bytes) -> "LayerTable":
        """Inverse of `to_json`.

        Raises:
            IntegrityError: These bytes are not a table.
        """
        try:
            raw = json.loads(data)
            rows = tuple(PartRow(**{**row, "layers": tuple(row["layers"])}) for row in raw["rows"])
            tuples = {name: tuple(raw[name]) for name in ("parts", "concepts")}
            return cls(**{**raw, "rows": rows, **tuples})
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(
                f"the layer table of a base cannot be read: {error}",
                "delete its base-analysis folder, run e2gan layers",
            ) from error


def load_layers(store: ObjectStore, base_id: str) -> LayerTable | None:
    """The stored table of a base, or None.

    Raises:
        IntegrityError: It is damaged.
    """
    try:
        return LayerTable.parse(store.get(keys.layers_file(base_id, TABLE)))
    except KeyError:
        return None


def choose_parts(rows: Sequence[PartRow], keep: float) -> tuple[tuple[str, ...], dict[str, int]]:
    """Adapted parts and their rank factors from measured gains.

    Parts are taken by gain per weight, best first, until they hold ``keep`` of the total gain. Ranks follow the square
    root of the gain per weight (a rank's return diminishes), in powers of two up to `MAX_FACTOR`.

    Args:
        rows: All parts with their gains.
        keep: Share of the total gain.

    Returns:
        Parts in the order of ``rows``, and part -> factor.
    """
    useful = sorted((row for row in rows if row.gain > 0), key=lambda row: -row.gain_per_1000)
    if not useful:
        return tuple(row.part for row in rows), {row.part: 1 for row in rows}
    total, held, taken = sum(row.gain for row in useful), 0.0, []
    for row in useful:
        taken.append(row)
        held += row.gain
        if held >= keep * total:
            break
    least = min(row.gain_per_1000 for row in taken)
    factors = {row.part: min(MAX_FACTOR, 2 ** round(math.log2(row.gain_per_1000 / least) / 2)) for row in taken}
    return tuple(row.part for row in rows if row.part in factors), factors


def start_ranks(search: SearchConfig, table: LayerTable) -> dict[str, int]:
    """Layer -> rank on the first rung.

    Raises:
        ConfigError: ``search.crucial_parts`` names a part the generator does not have.
    """
    layers: Mapping[str, tuple[str, ...]] = {row.part: row.layers for row in table.rows}
    parts = search.crucial_parts if search.crucial_parts is not None else list(table.parts)
    unknown = [part for part in parts if part not in layers]
    if unknown or not parts:
        raise ConfigError(
            f"search.crucial_parts names {', '.join(unknown) or 'no part'}; the generator has {', '.join(layers)}",
            "name some of these, or leave search.crucial_parts empty",
        )
    return {name: search.start_rank * table.factors.get(part, 1) for part in parts for name in layers[part]}


def need_layers(store: ObjectStore, base_id: str) -> LayerTable:
    """The stored table.

    Raises:
        InputError: The analysis has not been run.
    """
    table = load_layers(store, base_id)
    if table is None:
        raise InputError(f"base {base_id} has no layer table yet", "run `e2gan layers --config FILE` first")
    return table
