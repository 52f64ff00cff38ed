"""Printing plans and states as tables for people."""

import json
from collections.abc import Callable
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from e2gan_cluster.cost import Plan, Range
from e2gan_cluster.status import BatchStatus


def plan_line(plan: Plan) -> str:
    """The plan in one line."""
    hours, cost = plan.wall_hours, plan.total.cost
    return (
        f"left to do: {plan.total.pairs} pairs, {_count(plan.total.images.likely)} training images; about "
        f"{_time(hours.likely)} ({_time(hours.low)} to {_time(hours.high)}), {cost.likely:.2f} {plan.currency}"
    )


def print_plan(plan: Plan) -> None:
    """Table of all concepts, totals, and where the throughputs come from."""
    table = Table(box=None, pad_edge=False)
    for name in ("concept", "state", "pairs", "training images", "worker time", "storage", f"cost {plan.currency}"):
        table.add_column(name, justify="left" if name in ("concept", "state") else "right")
    for row in [*plan.rows, plan.total]:
        table.add_row(
            Text(row.name),
            row.state,
            str(row.pairs),
            _range(row.images, _count),
            _range(row.seconds, lambda s: _time(s / 3600)),
            f"{row.stored_bytes / 1e6:.1f} MB",
            _range(row.cost, lambda c: f"{c:.3f}"),
        )
    console = _console()
    console.print(table)
    console.print(f"wall time about {_range(plan.wall_hours, _time)} (low - likely - high)", highlight=False)
    for source in plan.sources:
        console.print(source, highlight=False)


def print_status(status: BatchStatus) -> None:
    """Table of all concepts, stages, and whether the batch is running."""
    console = _console()
    console.print(f"batch {status.name} ({status.fingerprint[:12]}): {status.running}", highlight=False)
    for stage, record in status.stages.items():
        # A run that finds a stage finished is quick: what counts is how long the work took.
        took = f" {max(record['seconds'], record.get('work_s', 0.0)):.0f} s" if "seconds" in record else ""
        console.print(f"  {stage}: {record['state']}{took} {record.get('reason', '')}", highlight=False, markup=False)
    for task, progress in status.progress.items():
        console.print(f"  now {task}: {progress['done']} of {progress['total']} {progress['unit']}", highlight=False)
    table = Table(box=None, pad_edge=False)
    for name in ("concept", "role", "state", "pairs", "trials", "metric", "pick", "cost", "version", "reason"):
        table.add_column(name, justify="right" if name in ("pairs", "trials", "metric", "cost") else "left")
    for row in status.rows:
        metric = "" if row.metric is None else f"{row.metric:.4f}"
        cells = (row.concept, row.role, row.state, str(row.pairs), str(row.trials), metric)
        table.add_row(*map(Text, (*cells, row.pick, f"{row.cost:.3f}", row.version, row.reason)))
    console.print(table)


def status_json(status: BatchStatus) -> str:
    """The state as JSON for programs."""
    return json.dumps(asdict(status), indent=1, default=str)


def _console() -> Console:
    console = Console()
    # In a pipe nothing is cut at 80 columns.
    return console if console.is_terminal else Console(width=240)


def _range(value: Range, show: Callable[[float], str]) -> str:
    if value.low == value.high:
        return show(value.likely)
    return f"{show(value.low)} - {show(value.likely)} - {show(value.high)}"


def _count(value: float) -> str:
    return f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value / 1e3:.1f}k" if value >= 1e4 else f"{value:.0f}"


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"
