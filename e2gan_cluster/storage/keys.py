"""Every key under a storage root is built here and nowhere else.

The root is a folder or ``s3://bucket/prefix``; keys are relative to it and use ``/``.
"""

from e2gan_cluster.names import check_name

REPORT = "report.html"
OVERVIEW = "overview.png"


def check_key(key: str) -> str:
    """Return ``key`` if it stays below the root on every store.

    Raises:
        ValueError: it is empty, absolute, too long, or has ``.`` or ``..`` parts, a backslash or control characters.
    """
    parts = key.split("/")
    if any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts):
        raise ValueError(f"key {key!r} must be parts joined by single slashes, without '.' and '..'")
    if "\\" in key or not key.isprintable() or len(key.encode()) > 900:
        raise ValueError(f"key {key[:80]!r} has a backslash or control character, or is longer than 900 bytes")
    return key


def check_prefix(prefix: str) -> str:
    """Return ``prefix`` if it is empty or the beginning of a usable key."""
    if prefix:
        check_key(prefix[:-1] if prefix.endswith("/") else prefix)
    return prefix


def pairs_prefix(concept: str) -> str:
    """Folder of a concept's pair shards."""
    return f"pairs/{check_name(concept, 'concept')}/"


def pair_shard(concept: str, shard: str) -> str:
    """Parquet file of one shard."""
    return f"{pairs_prefix(concept)}{check_name(shard, 'shard')}.parquet"


def pair_shard_done(concept: str, shard: str) -> str:
    """Done-marker of one shard, written last."""
    return f"{pairs_prefix(concept)}{check_name(shard, 'shard')}.done.json"


def pairs_status(concept: str) -> str:
    """Counts of a concept's pairs; written when generation of the concept ends."""
    return f"{pairs_prefix(concept)}status.json"


def pairs_index(concept: str, fingerprint: str) -> str:
    """Names and digests of the finished shards under one pair setting; replaced as photos are added."""
    return f"{pairs_prefix(concept)}index-{check_name(fingerprint, 'fingerprint')}.json"


def pairs_grid(concept: str, split: str) -> str:
    """Picture of fixed photos beside their edits."""
    return f"{pairs_prefix(concept)}grid-{check_name(split, 'split')}.png"


def base_prefix(base_id: str) -> str:
    """Folder of a published base."""
    return f"base/{check_name(base_id, 'base_id')}/"


def base_file(base_id: str, name: str) -> str:
    """A file of a published base."""
    return f"{base_prefix(base_id)}{name}"


def base_pointer(fingerprint: str) -> str:
    """Done-marker of base training: config fingerprint -> base_id."""
    return f"base/by-config/{check_name(fingerprint, 'fingerprint')}.json"


def base_work_prefix(fingerprint: str) -> str:
    """Folder of the checkpoints of a base in training."""
    return f"work/base/{check_name(fingerprint, 'fingerprint')}/"


def layers_prefix(base_id: str) -> str:
    """Folder of the crucial-layer analysis of a base."""
    return f"base-analysis/{check_name(base_id, 'base_id')}/"


def layers_file(base_id: str, name: str) -> str:
    """A file (table, picture) of the crucial-layer analysis of a base."""
    return f"{layers_prefix(base_id)}{name}"


def search_prefix(concept: str, fingerprint: str) -> str:
    """Folder of the search records of a concept under one search setting."""
    return f"search/{check_name(concept, 'concept')}/{check_name(fingerprint, 'fingerprint')}/"


def search_trial(concept: str, fingerprint: str, trial: str) -> str:
    """Record of one finished trial."""
    return f"{search_prefix(concept, fingerprint)}trials/{check_name(trial, 'trial')}.json"


def search_trial_adapter(concept: str, fingerprint: str, trial: str, name: str) -> str:
    """A file of the adapter that one trial trained."""
    return f"{search_prefix(concept, fingerprint)}trials/{check_name(trial, 'trial')}/{name}"


def search_result(concept: str, fingerprint: str) -> str:
    """Done-marker of a concept's search: its pick."""
    return f"{search_prefix(concept, fingerprint)}result.json"


def search_file(concept: str, fingerprint: str, name: str) -> str:
    """Any other file of a concept's search (grid, curve)."""
    return f"{search_prefix(concept, fingerprint)}{name}"


def adapters_prefix(concept: str) -> str:
    """Folder of all versions of a concept's adapter."""
    return f"adapters/{check_name(concept, 'concept')}/"


def adapter_version_prefix(concept: str, version: str) -> str:
    """Folder of one immutable adapter version."""
    return f"{adapters_prefix(concept)}{check_name(version, 'version')}/"


def adapter_file(concept: str, version: str, name: str) -> str:
    """A file of one adapter version."""
    return f"{adapter_version_prefix(concept, version)}{name}"


def adapter_channel(concept: str, channel: str = "latest") -> str:
    """Pointer of a channel (``latest``, ``canary``, ``prod``), moved by compare-and-swap only."""
    return f"{adapters_prefix(concept)}{check_name(channel, 'channel')}.json"


def mobile_file(base_id: str, name: str) -> str:
    """A file exported for devices that belongs to the base, not to one concept."""
    return f"mobile/{check_name(base_id, 'base_id')}/{name}"


def run_config(fingerprint: str) -> str:
    """Resolved config of a run, stored beside its outputs."""
    return run_status(fingerprint, "config.yaml")


def run_status(fingerprint: str, name: str) -> str:
    """Status record of a run (stage state, failures, timings)."""
    return f"runs/{check_name(fingerprint[:16], 'fingerprint')}/{name}"


def run_last(name: str) -> str:
    """Config of the last run of that name, to explain changes."""
    return f"runs/by-name/{check_name(name, 'run name')}.json"


UPLOADS = "work/uploads/"


def upload(token: str) -> str:
    """Temporary object of a large upload, before it is placed under its own key."""
    return f"{UPLOADS}{check_name(token, 'token')}"


PROBES = "probe/"


def probe(token: str) -> str:
    """Key of the start-up probe of conditional writes."""
    return f"{PROBES}{check_name(token, 'token')}"


def feature_cache(digest: str) -> str:
    """Features of one set of images under one network, by content."""
    return f"work/features/{check_name(digest, 'digest')}.npy"


def evaluation(concept: str, fingerprint: str) -> str:
    """Metrics of a concept's base, adapter and baselines on held-out photos."""
    return f"evaluation/{check_name(concept, 'concept')}/{check_name(fingerprint, 'fingerprint')}.json"
