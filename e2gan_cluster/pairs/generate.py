"""Generates the pairs of many concepts: plan, skip what is finished, make the rest on Ray, record the outcome.

Killed at any moment, the same call finishes the work: a shard counts once its done-marker is there, and its name says
all that went into it.

Example:
    >>> results = generate_pairs(config, open_store(config.storage), concepts, make_reporter("auto"))
    >>> results["oil-painting"].train_ok
    1000
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import IntegrityError, StoreError, TeacherError
from e2gan_cluster.pairs.ledger import ConceptLedger, Ledger, PairsResult
from e2gan_cluster.pairs.outcome import PairsTracker, finish
from e2gan_cluster.pairs.plan import SPLITS, Item, ShardSpec, Split, plan_items, plan_shards
from e2gan_cluster.pairs.ray_pool import RayPool, ShardReport, make_reported
from e2gan_cluster.pairs.scan import scan_photos
from e2gan_cluster.pairs.shards import DoneMarker, discard_shard, find_index, read_marker, read_shard
from e2gan_cluster.pairs.worker import ShardMaker
from e2gan_cluster.progress import Reporter
from e2gan_cluster.ray_runtime import ray_session
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.teacher.base import Teacher

__all__ = ["PairsResult", "generate_pairs", "pairs_pending", "run_local"]

TASK = "pairs"
_READERS = 16


def generate_pairs(
    config: RunConfig,
    store: ObjectStore,
    concepts: Sequence[Concept],
    reporter: Reporter,
    splits: Sequence[Split] = SPLITS,
    *,
    verify: bool | None = None,
    tracker: PairsTracker | None = None,
) -> dict[str, PairsResult]:
    """Makes the missing pairs of all concepts on Ray (joined or started only if something is missing).

    Args:
        config: Settings.
        store: Where shards go.
        concepts: Edits to make.
        reporter: Gets pairs/s, failures and incidents.
        splits: Which splits to make.
        verify: Read finished shards in full and make damaged ones again; None: only on local storage.
        tracker: Gets counts and grids of each concept.

    Returns:
        Concept name -> outcome. A concept that failed has a `failure`; the others are not touched by it.

    Raises:
        InputError: No photos, or too many bad ones.
        TeacherError: The teacher can't be loaded.
        StoreError: Storage failed for long. What is finished stays finished; run again.
    """
    ledger, todo = _prepare(config, store, concepts, splits, verify, reporter)
    if todo:
        with ray_session(config.ray):
            by_name = {concept.name: concept for concept in concepts}
            pool = RayPool(config, by_name, store.url)
            with closing(pool.run(todo)) as reports:
                _consume(reports, ledger, reporter, sum(len(spec.items) for spec in todo), pool)
    return finish(ledger, store, splits, reporter, tracker)


def run_local(
    config: RunConfig,
    store: ObjectStore,
    concepts: Sequence[Concept],
    reporter: Reporter,
    splits: Sequence[Split] = SPLITS,
    *,
    verify: bool | None = None,
    teacher: Teacher | None = None,
    tracker: PairsTracker | None = None,
) -> dict[str, PairsResult]:
    """`generate_pairs` without Ray, in this process: the same shards, byte for byte.

    Args:
        config: Settings.
        store: Where shards go.
        concepts: Edits to make.
        reporter: Gets progress.
        splits: Which splits to make.
        verify: See `generate_pairs`.
        teacher: A loaded teacher of this config; None loads it.
        tracker: See `generate_pairs`.

    Returns:
        Concept name -> outcome.

    Raises:
        UserError: As `generate_pairs`.
    """
    ledger, todo = _prepare(config, store, concepts, splits, verify, reporter)
    if todo:
        maker = ShardMaker(config, {concept.name: concept for concept in concepts}, store, teacher)
        reports = _run_here(maker, todo, ledger)
        _consume(reports, ledger, reporter, sum(len(spec.items) for spec in todo), None)
    return finish(ledger, store, splits, reporter, tracker)


def pairs_pending(
    config: RunConfig, store: ObjectStore, concepts: Sequence[Concept], splits: Sequence[Split] = SPLITS
) -> bool:
    """Whether `generate_pairs` has anything to make.

    Raises:
        InputError: No photos, or too many bad ones.
    """
    return bool(_plan(config, store, concepts, splits, None)[1])


def _run_here(maker: ShardMaker, specs: Sequence[ShardSpec], ledger: Ledger) -> Iterator[ShardReport]:
    for spec in specs:
        if ledger.stopped(spec.concept):
            yield ShardReport(spec.concept, spec.name, len(spec.items), "stopped", f"{spec.concept} was stopped")
        else:
            yield make_reported(maker, spec)


def _prepare(
    config: RunConfig,
    store: ObjectStore,
    concepts: Sequence[Concept],
    splits: Sequence[Split],
    verify: bool | None,
    reporter: Reporter,
) -> tuple[Ledger, list[ShardSpec]]:
    """Plan, and notes on what was found."""
    verify = "://" not in store.url if verify is None else verify
    ledger, todo, notes = _plan(config, store, concepts, splits, verify)
    for note in notes:
        reporter.note(note)
    return ledger, todo


def _plan(
    config: RunConfig, store: ObjectStore, concepts: Sequence[Concept], splits: Sequence[Split], verify: bool | None
) -> tuple[Ledger, list[ShardSpec], list[str]]:
    """What exists and what is to be made; damaged shards are removed unless ``verify`` is None (look only)."""
    scan = scan_photos(config.photos)
    items = plan_items(scan.origins, config)
    notes = [f"{scan.unreadable} of {scan.listed} photos can't be read and are left out"] if scan.unreadable else []
    ledgers = []
    missing: list[tuple[int, int, ShardSpec]] = []
    for n, concept in enumerate(concepts):
        ledger = _imported(store, config, concept)
        if ledger is None:
            ledger = ConceptLedger(concept, {s: plan_shards(items[s], s, concept, config) for s in SPLITS})
            notes += _find_finished(store, ledger, verify)
        for split in splits:
            for position, spec in enumerate(ledger.planned[split]):
                if spec.name not in ledger.markers:
                    missing.append((position, n, spec))
        ledgers.append(ledger)
    # Photo by photo through all concepts: workers have each photo decoded and encoded once.
    missing.sort(key=lambda entry: (entry[2].split != "train", entry[0], entry[1]))
    full = Ledger(config, ledgers)
    limit = config.pairs.filters.max_dropped_fraction
    for ledger in ledgers:
        ledger.stopped = ledger.too_many_dropped(limit)
    return full, [spec for _, _, spec in missing if not full.stopped(spec.concept)], notes


def _imported(store: ObjectStore, config: RunConfig, concept: Concept) -> ConceptLedger | None:
    """The finished ledger of a concept whose pairs were imported under this config; None for all others."""
    index = find_index(store, config, concept)
    if index is None or not index.imported:
        return None
    ledger = ConceptLedger(concept, {split: [] for split in SPLITS}, imported=True)
    for marker in index.markers:
        split: Split = "train" if marker.split == "train" else "heldout"
        items = (Item("", 0, "imported"),) * marker.rows
        ledger.planned[split].append(ShardSpec(marker.shard, split, concept.name, marker.fingerprint, items))
        ledger.markers[marker.shard] = marker
    return ledger


def _find_finished(store: ObjectStore, ledger: ConceptLedger, verify: bool | None) -> list[str]:
    """Books the finished shards of a concept; returns what is wrong with the others that have a marker."""
    name = ledger.concept.name
    sizes = {info.key: info.size for info in store.list(keys.pairs_prefix(name))}
    specs = [s for specs in ledger.planned.values() for s in specs if keys.pair_shard_done(name, s.name) in sizes]
    with ThreadPoolExecutor(_READERS) as pool:
        checked = list(pool.map(lambda spec: _check(store, spec, sizes, bool(verify)), specs))
    notes = []
    for spec, (marker, problem) in zip(specs, checked, strict=True):
        if marker is not None:
            ledger.markers[spec.name] = marker
            continue
        notes.append(f"{keys.pair_shard(name, spec.name)}: {problem}; it is made again")
        ledger.incidents.append(f"{spec.name}: {problem}; made again")
        if verify is not None:
            discard_shard(store, name, spec.name)
    return notes


def _check(store: ObjectStore, spec: ShardSpec, sizes: dict[str, int], verify: bool) -> tuple[DoneMarker | None, str]:
    marker = read_marker(store, spec.concept, spec.name)
    if marker is None:
        return None, "its done-marker can't be read"
    if (marker.shard, marker.fingerprint, marker.rows) != (spec.name, spec.fingerprint, len(spec.items)):
        return None, "its done-marker belongs to another shard"
    size = sizes.get(keys.pair_shard(spec.concept, spec.name))
    if size != marker.size:
        return None, f"has {size or 0} bytes instead of {marker.size}"
    if verify:
        try:
            read_shard(store, spec.concept, marker)
        except IntegrityError as error:
            return None, error.message
    return marker, ""


def _consume(
    reports: Iterator[ShardReport], ledger: Ledger, reporter: Reporter, total_rows: int, pool: RayPool | None
) -> None:
    """Books reports as they come, stops hopeless concepts, ends the run where going on makes no sense."""
    reporter.start(TASK, total_rows, "pairs")
    done = failed = 0
    try:
        for report in reports:
            done += report.rows
            failed += report.rows if report.failure else 0
            if report.failure == "storage":
                raise StoreError(report.reason, report.fix or "mend the storage and run the same command again")
            if report.failure == "setup":
                raise TeacherError(report.reason, report.fix)
            if report.failure not in ("", "stopped"):
                reporter.note(f"shard {report.shard} of {report.concept} failed: {report.reason}")
            if ledger.add(report):
                reporter.note(f"concept {report.concept} is stopped: too many of its pairs were dropped")
                if pool is not None:
                    pool.stop(report.concept)
            reporter.update(TASK, done, pairs_per_s=round(ledger.pairs_per_s(), 2), failed=failed)
        if pool is not None:
            incidents = pool.incidents()
            ledger.add_incidents(incidents)
            for incident in incidents:
                reporter.note(f"shard {incident.shard} of {incident.concept}: {incident.what}")
    finally:
        reporter.finish(TASK, f"{ledger.rows_made} pairs made, {failed} failed")
