"""Finding what a search has left in the store. Light: no torch, no Ray.

Example:
    >>> result = find_result(config, store, base_id, concept)
    >>> result.adapter_key_prefix, result.files
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import UserError
from e2gan_cluster.pairs.shards import pairs_digest, read_index
from e2gan_cluster.search.layer_table import load_layers, need_layers, start_ranks
from e2gan_cluster.search.records import ConceptResult, read_result, read_trials
from e2gan_cluster.search.scheduler import ConceptTask, failed_result
from e2gan_cluster.search.settings import SearchSetting, absolute_root
from e2gan_cluster.search.warm import Start, read_start
from e2gan_cluster.storage.base import ObjectStore

_READERS = 16


def open_setting(config: RunConfig, store: ObjectStore, base_id: str) -> SearchSetting:
    """The search of a config on a base.

    Raises:
        InputError: The base has no layer table.
    """
    ranks = start_ranks(config.search, need_layers(store, base_id))
    return SearchSetting(config, absolute_root(store.url), base_id, ranks)


def find_result(config: RunConfig, store: ObjectStore, base_id: str, concept: Concept) -> ConceptResult | None:
    """The finished result of a concept under this config, or None."""
    if load_layers(store, base_id) is None:
        return None
    setting = open_setting(config, store, base_id)
    try:
        return read_result(store, concept.name, setting.fingerprint(concept, pairs_digest(store, config, concept)))
    except UserError:
        return None


def open_tasks(
    config: RunConfig, store: ObjectStore, setting: SearchSetting, concepts: Iterable[Concept]
) -> list[ConceptTask]:
    """What is known of each concept: its result, its trials, its pairs; the reason if it cannot be searched."""

    def look(concept: Concept) -> ConceptTask:
        task = ConceptTask(concept, start=None if config.search.warm_start else Start())
        try:
            markers = read_index(store, config, concept)
            task.fingerprint = setting.fingerprint(concept, pairs_digest(store, config, concept))
            task.available = sum(m.counts.get("ok", 0) for m in markers if m.split == "train")
            task.result = read_result(store, concept.name, task.fingerprint)
            if task.result is None:
                task.records = read_trials(store, concept.name, task.fingerprint)
                task.start = read_start(store, concept.name, task.fingerprint) if task.start is None else task.start
                if task.available == 0:
                    task.result = failed_result(task, setting.base_id, "it has no usable training pairs")
        except UserError as error:
            task.result = failed_result(task, setting.base_id, str(error))
        return task

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(look, concepts))
