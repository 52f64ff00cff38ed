"""One table across concepts and batches, from storage: what was picked, how good it is, what it took.

Example: ``e2gan compare --config configs/demo.yaml --config configs/wide.yaml --csv table.csv``
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from e2gan_cluster.config import RunConfig
from e2gan_cluster.search.records import ConceptResult, iter_results
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.track.collect import ConceptView, collect

_FORMULA_START = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class CompareRow:
    """One concept in one batch.

    Attributes:
        batch: Name of the batch.
        concept: Name of the concept.
        state: As in ``e2gan status``.
        base_id: Base of the adapter.
        search: Fingerprint of the search.
        rank_multiplier: Rung of the rank ladder that was picked.
        data_size: Training pairs of the pick.
        metric: Metric that decided, lower is better.
        adapter: Its value for the pick, on held-out photos.
        base: Its value for the base without an adapter.
        photo: Its value for the unchanged photo.
        floor: Its value for the teacher against itself under another seed, where measured.
        gain: ``photo`` over ``adapter``.
        adapter_bytes: Size of the pick.
        trials: Trials of the search.
        images: Training images of all trials.
        seconds: Worker seconds of pairs and trials.
        cost: Price of ``seconds``.
        version: Published version.
        failure: Why it failed.
    """

    batch: str
    concept: str
    state: str
    base_id: str = ""
    search: str = ""
    rank_multiplier: int | None = None
    data_size: int | None = None
    metric: str = ""
    adapter: float | None = None
    base: float | None = None
    photo: float | None = None
    floor: float | None = None
    gain: float | None = None
    adapter_bytes: int | None = None
    trials: int = 0
    images: int | None = None
    seconds: float = 0.0
    cost: float = 0.0
    version: str = ""
    failure: str = ""


def compare(batches: Iterable[tuple[RunConfig, ObjectStore]], *, every_search: bool = False) -> list[CompareRow]:
    """Rows of all new concepts of some batches.

    Args:
        batches: Configs with their storage.
        every_search: Also list results of other search settings found in the storage.

    Raises:
        UserError: A config names unknown concepts, or a storage cannot be reached.
    """
    rows = []
    for config, store in batches:
        view = collect(config, store, pictures=False)
        for concept in view.concepts:
            if concept.row.role == "base":
                continue
            rows.append(_row(config.name, concept, concept.result))
            if every_search:
                rows += [
                    _row(config.name, concept, result)
                    for result in iter_results(store, concept.name)
                    if concept.result is None or result.fingerprint != concept.result.fingerprint
                ]
    return rows


def _row(batch: str, concept: ConceptView, result: ConceptResult | None) -> CompareRow:
    row = concept.row
    own = result is concept.result
    if result is None or result.state != "done":
        failure = row.reason or (result.failure or "" if result else "")
        return CompareRow(
            batch, concept.name, row.state, trials=row.trials, seconds=row.seconds, cost=row.cost, failure=failure
        )
    name = result.metric_name
    photo = result.identity_metrics.get(name)
    return CompareRow(
        batch=batch,
        concept=concept.name,
        state=row.state if own else "other setting",
        base_id=result.base_id,
        search=result.fingerprint,
        rank_multiplier=result.rank_multiplier,
        data_size=result.data_size,
        metric=name,
        adapter=result.metric,
        base=result.base_metrics.get(name),
        photo=photo,
        floor=concept.floor.get(name),
        gain=photo / result.metric if photo is not None and result.metric else None,
        adapter_bytes=result.adapter_bytes,
        trials=result.trials,
        images=result.images,
        seconds=row.seconds if own else result.seconds,
        cost=row.cost if own else 0.0,
        version=row.version if own else "",
        failure=row.reason if own else "",
    )


def to_csv(rows: Sequence[CompareRow]) -> str:
    """The table as CSV. Text that a spreadsheet would run as a formula gets a leading apostrophe."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([f.name for f in fields(CompareRow)])
    writer.writerows([_cell(value) for value in asdict(row).values()] for row in rows)
    return buffer.getvalue()


def to_json(rows: Sequence[CompareRow]) -> str:
    """The table as a JSON list."""
    return json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False)


def pivot(rows: Sequence[CompareRow]) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """The pick's metric by concept and batch.

    Returns:
        Names of the batches, and for each concept its values in that order.
    """
    batches = list(dict.fromkeys(row.batch for row in rows))
    values = {(row.concept, row.batch): row.adapter for row in rows if row.state != "other setting"}
    concepts = list(dict.fromkeys(row.concept for row in rows))
    return batches, [(concept, [values.get((concept, batch)) for batch in batches]) for concept in concepts]


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA_START):
        return f"'{value}"
    return "" if value is None else value
