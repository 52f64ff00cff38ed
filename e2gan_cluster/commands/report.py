"""`e2gan report` and `e2gan compare`: what came out of batches, read from storage."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from e2gan_cluster.commands.options import ConfigOption, SetOption
from e2gan_cluster.config_io import load_config
from e2gan_cluster.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from e2gan_cluster.track.compare import CompareRow


def report(
    config: ConfigOption,
    settings: SetOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write the page to this file.")
    ] = None,
) -> None:
    """Write report.html into the storage: one page with all pictures, while the batch runs or after it.

    Example: `e2gan report --config configs/demo.yaml --output report.html`
    """
    from e2gan_cluster.batch import resolve_storage
    from e2gan_cluster.storage import keys, open_store
    from e2gan_cluster.track.report import write_report

    run_config = resolve_storage(load_config(config, settings or ()))
    store = open_store(run_config.storage)
    page = write_report(run_config, store)
    typer.echo(f"{store.url.rstrip('/')}/{keys.REPORT}  {len(page) / 1e6:.1f} MB")
    if output:
        output.write_bytes(page)
        typer.echo(str(output))


def compare(
    config: Annotated[
        list[Path],
        typer.Option("--config", "-c", metavar="FILE", help="Run file; give several to compare batches."),
    ],
    settings: SetOption = None,
    every_search: Annotated[
        bool, typer.Option("--all", help="Also other search settings found in the storage.")
    ] = False,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the table as CSV.")] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the table as JSON.")] = None,
) -> None:
    """Print one table across concepts and batches: picks, quality beside base and photo, size, work, cost.

    Example: `e2gan compare --config configs/demo.yaml --config configs/other.yaml --csv table.csv`
    """
    from e2gan_cluster.batch import resolve_storage
    from e2gan_cluster.storage import open_store
    from e2gan_cluster.track.compare import compare as make_rows
    from e2gan_cluster.track.compare import to_csv, to_json

    configs = [resolve_storage(load_config(path, settings or ())) for path in config]
    rows = make_rows([(c, open_store(c.storage)) for c in configs], every_search=every_search)
    if not rows:
        raise InputError("these batches have no new concepts", "see concepts.new in the run file")
    _print_rows(rows)
    if len(configs) > 1:
        _print_pivot(rows)
    for path, text in ((csv, to_csv), (json, to_json)):
        if path:
            path.write_text(text(rows), encoding="utf-8")
            typer.echo(str(path))


def _print_rows(rows: "Sequence[CompareRow]") -> None:
    from e2gan_cluster.track.charts import number
    from e2gan_cluster.track.report_cards import duration, size

    def figure(value: float | None) -> str:
        return "" if value is None else number(value)

    lines = [
        ["batch", "concept", "state", "pick", "metric", "adapter", "base", "photo", "floor", "size", "work", "cost"]
    ]
    for row in rows:
        pick = f"x{row.rank_multiplier} n{row.data_size}" if row.data_size else ""
        weight = size(row.adapter_bytes) if row.adapter_bytes else ""
        work = duration(row.seconds) if row.seconds else ""
        cost = f"{row.cost:.3f}" if row.cost else ""
        lines.append([row.batch, row.concept, row.state, pick, row.metric, figure(row.adapter), figure(row.base),
                      figure(row.photo), figure(row.floor), weight, work, cost])  # fmt: skip
    print_table(lines, numbers_from=5)
    for row in rows:
        if row.failure:
            typer.echo(f"{row.batch} {row.concept}: {row.failure}")


def _print_pivot(rows: "Sequence[CompareRow]") -> None:
    from e2gan_cluster.track.charts import number
    from e2gan_cluster.track.compare import pivot

    batches, values = pivot(rows)
    typer.echo("")
    lines = [["concept", *batches]]
    lines += [[concept, *("" if v is None else number(v) for v in line)] for concept, line in values]
    print_table(lines, numbers_from=1)


def print_table(lines: "Sequence[Sequence[str]]", numbers_from: int) -> None:
    """Print rows in columns, the first as heading; columns from ``numbers_from`` on are right-aligned."""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    for line in lines:
        cells = [
            cell.rjust(width) if k >= numbers_from else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        typer.echo("  ".join(cells).rstrip())
