"""One concept's card in the report: pictures to lay over each other, size against quality, ladder, metrics."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from e2gan_cluster.search.records import ConceptResult
from e2gan_cluster.track.charts import line_chart, number
from e2gan_cluster.track.collect import BatchView, ConceptView
from e2gan_cluster.track.pictures import strips

_OPEN, _WIDE_OPEN = 6, 2
_MLFLOW_SCHEMES = ("http://", "https://")


def card(view: BatchView, concept: ConceptView, index: int) -> dict[str, Any]:
    """Everything the template needs for one concept.

    Args:
        view: The batch.
        concept: The concept.
        index: Its place; the first ones are open.
    """
    from markupsafe import Markup

    result, metric = concept.result, view.config.search.metric
    rows, cell = _budget(len(view.concepts))
    columns = strips(concept.samples or concept.pairs_grid, rows, cell)
    shown = min((strip.count for strip in columns), default=0)
    labels = [strip.label for strip in columns]
    right = _right_column(labels, result)
    done = result if result and result.state == "done" else None
    chart, key = _chart(done, concept, metric) if done else ("", [])
    return {
        "name": concept.name,
        "prompt": concept.prompt,
        "state": concept.row.state,
        "reason": concept.row.reason if concept.row.state == "failed" else "",
        "open": index < _OPEN,
        "wide_open": index < _WIDE_OPEN,
        "strips": columns,
        "shown": shown,
        "positions": [_position(r, shown) for r in range(shown)],
        "left": labels.index("teacher") if "teacher" in labels and right != labels.index("teacher") else 0,
        "right": right,
        "chart": Markup(chart),
        "key": key,
        "ladder": _ladder(done, metric) if done else [],
        "heldout": result.heldout if result else 0,
        "metrics": _metrics(concept),
        "facts": _facts(concept),
        "mlflow": mlflow_link(view.tracking, f"concept/{concept.name}"),
    }


def _budget(concepts: int) -> tuple[int, int]:
    """Pictures per column and their side: big batches get fewer and smaller ones, so that the page still opens."""
    if concepts <= 24:
        return 6, 160
    return (4, 112) if concepts <= 80 else (3, 80)


def _right_column(labels: list[str], result: ConceptResult | None) -> int:
    """The pick's column, else the last."""
    if result:
        wanted = f"x{result.rank_multiplier} n{result.data_size}"
        if wanted in labels:
            return labels.index(wanted)
    return max(len(labels) - 1, 0)


def _position(r: int, count: int) -> str:
    return f"{100 * r / (count - 1):.4g}% 0" if count > 1 else "0 0"


def _chart(result: ConceptResult, concept: ConceptView, metric: str) -> tuple[str, list[dict[str, Any]]]:
    done = result.compared
    sizes = sorted({int(row["data_size"]) for row in done})
    series = {
        f"{pairs} pairs": [
            (float(row["adapter_bytes"]) / 1000, float(row["metric"])) for row in done if row["data_size"] == pairs
        ]
        for pairs in sizes
    }
    levels = {}
    if metric in result.base_metrics:
        levels["base"] = result.base_metrics[metric]
    if metric in concept.floor:
        levels["floor"] = concept.floor[metric]
    pick = (result.adapter_bytes / 1000, result.metric) if result.metric is not None else None
    chart = line_chart(series, "adapter, kB", f"{metric}, lower is better", levels, pick)
    return chart, [{"label": label, "colour": i % 6} for i, label in enumerate(series)]


def _ladder(result: ConceptResult, metric: str) -> list[dict[str, Any]]:
    rungs = []
    for row in result.table:
        seed = f", seed {row['seed']}" if row.get("seed") else ""
        part = f", {100 * row['until']:.3g} %" if row.get("until", 1.0) < 1 else ""
        rungs.append(
            {
                "rung": f"ranks ×{row.get('multiplier', '?')}{seed}{part}",
                "pairs": row.get("data_size", ""),
                "metric": number(float(row["metric"])) if row.get("metric") is not None else "",
                "bytes": size(float(row.get("adapter_bytes") or 0)) if row.get("adapter_bytes") else "",
                "seconds": duration(float(row.get("seconds") or 0)),
                "hopeless": row.get("state") == "hopeless",
                "pick": row.get("trial") == result.pick,
            }
        )
    return rungs


def _metrics(concept: ConceptView) -> dict[str, Any]:
    """Metrics of adapter, base, unchanged photo, and what ``e2gan evaluate`` measured beside."""
    result = concept.result
    lines: dict[str, Mapping[str, float]] = {}
    if result and result.metrics:
        lines = {"adapter": result.metrics, "base": result.base_metrics, "unchanged photo": result.identity_metrics}
    for label, values in concept.evaluation.get("rows", {}).items():
        lines[label] = {**lines.get(label, {}), **values}
    if concept.floor:
        lines["floor (teacher, other seed)"] = concept.floor
    names = list(dict.fromkeys(name for values in lines.values() for name in values))
    shown = [
        {"label": label, "cells": [number(values[name]) if name in values else "" for name in names]}
        for label, values in lines.items()
    ]
    return {"names": names, "lines": shown} if names else {}


def _facts(concept: ConceptView) -> list[str]:
    result = concept.result
    facts = []
    if result and result.state == "done":
        facts = [
            f"{result.trials} trials",
            f"{result.images:,} training images",
            f"{duration(result.seconds)} of work",
            f"base {result.base_id}",
        ]
        if result.init:
            facts.append(f"started from the adapter of {result.init}")
    if concept.row.version:
        facts.append(f"version {concept.row.version}")
    return facts


def mlflow_link(tracking: Mapping[str, Any], run: str) -> str:
    """Address of a run in MLflow's pages; empty if it is not on a server or not known."""
    uri, experiment = str(tracking.get("uri") or ""), tracking.get("experiment_id")
    run_id = tracking.get("runs", {}).get(run)
    if not uri.startswith(_MLFLOW_SCHEMES) or not experiment or not run_id or "***" in uri:
        return ""
    return f"{uri.rstrip('/')}/#/experiments/{quote(str(experiment))}/runs/{quote(str(run_id))}"


def duration(seconds: float) -> str:
    """Seconds for people: ``4 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(num_bytes: float) -> str:
    """Bytes for people."""
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    return f"{num_bytes / 1000:.0f} kB" if num_bytes < 1e6 else f"{num_bytes / 1e6:.1f} MB"
