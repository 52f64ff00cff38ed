"""The report of a batch: one HTML page without any outside request, made of storage records only.

It can be written at any time, while the batch runs and with stages missing, from any machine that reads the storage.

Example: ``e2gan report --config configs/demo.yaml``
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from e2gan_cluster import __version__
from e2gan_cluster.batch import run_fingerprint
from e2gan_cluster.config import RunConfig
from e2gan_cluster.redact import redact
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.track.charts import number
from e2gan_cluster.track.collect import TRACKING, BatchView, ConceptView, collect
from e2gan_cluster.track.mlflow_tracker import NullTracker, Tracker
from e2gan_cluster.track.pictures import png_uri
from e2gan_cluster.track.report_cards import card, duration, mlflow_link, size

_TEMPLATE = "report.html.j2"
_PATIENCE_S = 5.0
_MAX_TRACKED_BYTES = 20_000_000
_HEADS = ("concept", "state", "pick", "METRIC", "base", "photo", "floor", "size", "trials", "work", "cost")
_TEXT_HEADS = {"concept", "state", "pick"}


def write_report(config: RunConfig, store: ObjectStore, tracker: Tracker | NullTracker | None = None) -> bytes:
    """Write the page to `keys.REPORT`.

    Args:
        config: Config of the batch.
        store: Its storage.
        tracker: The run's tracker, if there is one: page and MLflow runs are linked both ways.

    Returns:
        The page.

    Raises:
        UserError: The config names unknown concepts, or storage cannot be reached.
    """
    if tracker is not None and tracker.flush(_PATIENCE_S) and tracker.links():
        key = keys.run_status(run_fingerprint(config), TRACKING)
        store.put(key, json.dumps(tracker.links(), indent=1).encode())
    page = render(collect(config, store))
    store.put(keys.REPORT, page)
    if tracker is not None:
        where = {"storage": store.url, "report": f"{store.url.rstrip('/')}/{keys.REPORT}"}
        tracker.log(tracker.batch_run, where, {})
        if len(page) <= _MAX_TRACKED_BYTES:
            tracker.log_file(tracker.batch_run, keys.REPORT, page)
    return page


def render(view: BatchView) -> bytes:
    """The page of a batch. All text is escaped: names and prompts are what users typed."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    metric = view.config.search.metric
    failures = [{"name": c.name, "reason": c.row.reason} for c in view.concepts if c.row.state == "failed"]
    return (
        environment.get_template(_TEMPLATE)
        .render(
            page=_page(view, metric, len(failures)),
            tiles=_tiles(view, metric),
            failures=failures,
            heads=[{"text": metric if h == "METRIC" else h, "numeric": h not in _TEXT_HEADS} for h in _HEADS],
            rows=[_row(concept, metric, view) for concept in view.concepts],
            cards=[card(view, concept, i) for i, concept in enumerate(view.concepts) if _has_card(concept)],
            stages=_stages(view),
            pairs=_pairs(view),
            layers=png_uri(view.layers_png),
            provenance=_provenance(view),
        )
        .encode()
    )


def _has_card(concept: ConceptView) -> bool:
    return concept.result is not None or concept.pairs_grid is not None


def _page(view: BatchView, metric: str, failed: int) -> dict[str, Any]:
    running = view.status.running
    state = "running" if running.startswith("running") else "failed" if "fail" in running else "done"
    new = [c for c in view.concepts if c.row.role != "base"]
    return {
        "name": view.config.name,
        "running": running,
        "state_class": state,
        "done": sum(c.row.state in ("adapted", "published") for c in new),
        "failed": failed,
        "total": len(new),
        "metric": metric,
        "metric_note": (
            f"{metric} on held-out photos against the teacher's edits, lower is better. base: the base without an "
            "adapter; photo: the unchanged photo; floor: the teacher against itself under another seed. "
            "The bar is the adapter against the unchanged photo, its mark the base."
        ),
        "written_at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "storage": redact(view.storage),
    }


def _tiles(view: BatchView, metric: str) -> list[dict[str, str]]:
    results = [result for _, result in view.results]
    gains = [
        result.identity_metrics[metric] / result.metric
        for result in results
        if result.metric and result.identity_metrics.get(metric)
    ]
    cost = sum(concept.row.cost for concept in view.concepts)
    seconds = [result.seconds for result in results]
    tiles = [("published", str(sum(c.row.state == "published" for c in view.concepts)))]
    if gains:
        tiles.append((f"median gain in {metric} over the unchanged photo", f"{median(gains):.1f}×"))
    if results:
        tiles.append(("median adapter", size(median(result.adapter_bytes for result in results))))
        tiles.append(("median work per concept, all trials", duration(median(seconds))))
    tiles.append(("machine cost so far", f"{cost:.2f} {view.config.costs.currency}"))
    return [{"label": label, "value": value} for label, value in tiles]


def _row(concept: ConceptView, metric: str, view: BatchView) -> dict[str, Any]:
    row, result = concept.row, concept.result
    value = result.metric if result and result.state == "done" else row.metric
    base = result.base_metrics.get(metric) if result else None
    identity = result.identity_metrics.get(metric) if result else None
    floor = concept.floor.get(metric)
    adapter_bytes = result.adapter_bytes if result else 0
    return {
        "name": concept.name,
        "prompt": concept.prompt,
        "role": row.role,
        "state": row.state,
        "pick": f"ranks ×{result.rank_multiplier}, {result.data_size} pairs" if result and result.pick else "",
        **_shown("metric", value),
        **_shown("base", base),
        **_shown("identity", identity),
        **_shown("floor", floor),
        "share": _share(value, identity),
        "base_share": _share(base, identity),
        "bytes": size(adapter_bytes) if adapter_bytes else "",
        "bytes_value": adapter_bytes or "",
        "trials": row.trials or "",
        "seconds": duration(row.seconds) if row.seconds else "",
        "seconds_value": row.seconds or "",
        "cost": f"{row.cost:.3f}" if row.cost else "",
        "cost_value": row.cost or "",
    }


def _shown(name: str, value: float | None) -> dict[str, Any]:
    """A figure for people and the same for sorting."""
    return {name: "" if value is None else number(value), f"{name}_value": "" if value is None else value}


def _share(value: float | None, whole: float | None) -> float | None:
    """Percent of the unchanged photo's distance, 0 to 100."""
    return None if value is None or not whole else round(min(max(100 * value / whole, 0), 100), 1)


def _stages(view: BatchView) -> list[dict[str, Any]]:
    stages = view.status.stages
    spent = {name: float(record.get("work_s") or record.get("seconds") or 0) for name, record in stages.items()}
    longest = max(spent.values(), default=0) or 1
    return [
        {
            "name": name,
            "state": record.get("state", ""),
            "reason": record.get("reason", ""),
            "seconds": duration(spent[name]),
            "share": round(100 * spent[name] / longest, 1),
        }
        for name, record in stages.items()
    ]


def _pairs(view: BatchView) -> list[dict[str, Any]]:
    return [
        {
            "name": concept.name,
            "train": concept.pairs.get("train", 0),
            "heldout": concept.pairs.get("heldout", 0),
            "dropped": ", ".join(f"{count} {reason}" for reason, count in concept.dropped.items()),
        }
        for concept in view.concepts
        if concept.pairs
    ]


def _provenance(view: BatchView) -> list[dict[str, Any]]:
    config, meta = view.config, view.base_meta
    uri = str(view.tracking.get("uri") or redact(config.tracking or "sqlite file mlflow.db in the run folder"))
    link = mlflow_link(view.tracking, "")
    command = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite:///") else uri
    teacher = config.teacher.model_dump(exclude_none=True)
    facts: list[tuple[str, str, bool]] = [
        ("storage", redact(view.storage), True),
        ("config", f"{keys.run_config(view.status.fingerprint)}, fingerprint {view.status.fingerprint[:16]}", True),
        ("seed", str(config.seed), False),
        ("photos", f"{config.photos.source}, {config.pairs.resolution} px", False),
        ("teacher", ", ".join(f"{name} {value}" for name, value in teacher.items() if value not in ("", False)), False),
        ("teacher fingerprint", str(meta.get("teacher_fingerprint", "not known yet")), True),
        ("base", view.base_id or "none yet", True),
        (
            "base made with",
            f"code {meta.get('code_version', '?')}, {meta.get('created_at', 'time not recorded')}",
            False,
        ),
        ("generator", ", ".join(f"{name} {value}" for name, value in config.nets.model_dump().items()), False),
        ("code of this page", __version__, False),
    ]
    listed = [{"label": label, "value": value, "code": code, "link": ""} for label, value, code in facts]
    return [*listed, {"label": "MLflow", "value": link or command, "code": True, "link": link}]
