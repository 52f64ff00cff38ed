"""`e2gan adapt` and `e2gan layers`: search rank and data size for new concepts; what each part of a base is worth."""

from typing import TYPE_CHECKING, Annotated

import typer

from e2gan_cluster.commands.options import ConfigOption, LogFormatOption, SetOption
from e2gan_cluster.config_io import load_config
from e2gan_cluster.errors import EXIT_NOTHING_DONE, EXIT_OK, EXIT_SOME_FAILED, InputError
from e2gan_cluster.progress import make_reporter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from e2gan_cluster.batch import Batch
    from e2gan_cluster.concepts import Concept
    from e2gan_cluster.search.records import ConceptResult

ConceptOption = Annotated[list[str] | None, typer.Option("--concept", help="Only these new concepts; may be repeated.")]
LocalOption = Annotated[
    bool, typer.Option("--local", help="In this process, without Ray; one trial at a time, same result.")
]


def adapt(
    config: ConfigOption,
    settings: SetOption = None,
    concept: ConceptOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be searched, and stop.")] = False,
    local: LocalOption = False,
    log_format: LogFormatOption = "auto",
) -> None:
    """Adapt the base to every new concept: LoRA rank and data size by search, all in one Ray Tune experiment.

    Finished concepts are skipped, killed searches go on. Exit codes: 0 all done, 1 nothing done, 3 some failed.

    Example: `e2gan adapt --config configs/demo.yaml --concept oil-painting`
    """
    from e2gan_cluster.batch import open_batch, tracking_uri
    from e2gan_cluster.ray_runtime import ray_session
    from e2gan_cluster.search.adapt import adapt_concepts, adapt_pending
    from e2gan_cluster.search.jobs import serve_here
    from e2gan_cluster.track.mlflow_tracker import open_tracker

    batch = open_batch(load_config(config, settings or ()))
    chosen = _chosen(batch, concept)
    base_id = _base_id(batch)
    pending = adapt_pending(batch.config, batch.store, base_id, chosen)
    if dry_run:
        _print_plan(batch, base_id, chosen, pending)
        return
    batch.store.probe()
    reporter = make_reporter(log_format)
    tracker = open_tracker(tracking_uri(batch.config), batch.config.name, batch.fingerprint)
    arguments = (batch.config, batch.store, base_id, chosen, reporter, tracker)
    try:
        if pending and not local:
            from e2gan_cluster.search.pool import worker_pool

            with ray_session(batch.config.ray), worker_pool(batch.config) as pool:
                results = adapt_concepts(*arguments, pool.serve)
        else:
            results = adapt_concepts(*arguments, serve_here)
    finally:
        tracker.close()
    _print_results(results)
    states = [result.state for result in results.values()]
    if all(state == "done" for state in states):
        raise typer.Exit(EXIT_OK)
    raise typer.Exit(EXIT_SOME_FAILED if "done" in states else EXIT_NOTHING_DONE)


def layers(
    config: ConfigOption, settings: SetOption = None, local: LocalOption = False, log_format: LogFormatOption = "auto"
) -> None:
    """Measure what adapting each part of the base is worth; stored with the base and used by every search on it.

    Example: `e2gan layers --config configs/demo.yaml`
    """
    from e2gan_cluster.batch import open_batch, tracking_uri
    from e2gan_cluster.ray_runtime import ray_session
    from e2gan_cluster.search.jobs import serve_here
    from e2gan_cluster.search.layer_table import load_layers
    from e2gan_cluster.search.layers import ensure_layers
    from e2gan_cluster.track.mlflow_tracker import open_tracker

    batch = open_batch(load_config(config, settings or ()))
    base_id = _base_id(batch)
    table = load_layers(batch.store, base_id)
    if table is None or table.mode == "given":
        tracker = open_tracker(tracking_uri(batch.config), batch.config.name, batch.fingerprint)
        arguments = (batch.config, batch.store, base_id, batch.new or batch.base, make_reporter(log_format), tracker)
        try:
            if local:
                table = ensure_layers(*arguments, serve_here)
            else:
                from e2gan_cluster.search.pool import worker_pool

                with ray_session(batch.config.ray), worker_pool(batch.config) as pool:
                    table = ensure_layers(*arguments, pool.serve)
        finally:
            tracker.close()
    typer.echo(f"base {base_id}  {table.mode}  {table.metric_name}  {table.images} images per probe")
    typer.echo(f"{'part':<13}{'LoRA weights':>13}{'metric':>10}{'gain':>8}{'gain/1000':>11}  adapted")
    for row in table.rows:
        metric = "" if row.metric is None else f"{row.metric:.4f}"
        adapted = f"rank x{table.factors[row.part]}" if row.part in table.factors else ""
        gain, per_1000 = f"{100 * row.gain:.1f} %", f"{100 * row.gain_per_1000:.2f} %"
        typer.echo(f"{row.part:<13}{row.parameters:>13}{metric:>10}{gain:>8}{per_1000:>11}  {adapted}")


def _chosen(batch: "Batch", names: list[str] | None) -> "list[Concept]":
    """The new concepts asked for.

    Raises:
        InputError: A name is not a new concept of this batch.
    """
    if not names:
        return batch.new
    by_name = {concept.name: concept for concept in batch.new}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise InputError(
            f"{unknown[0]} is not a new concept of this batch",
            f"choose among {', '.join(by_name) or 'none: there are none'}",
        )
    return [by_name[name] for name in dict.fromkeys(names)]


def _base_id(batch: "Batch") -> str:
    """The batch's trained base.

    Raises:
        InputError: There is none yet.
    """
    from e2gan_cluster.train.base_driver import base_done

    base_id = base_done(batch.config, batch.store, batch.base)
    if base_id is None:
        raise InputError("this batch has no trained base yet", "run `e2gan base` with the same config first")
    return base_id


def _print_plan(batch: "Batch", base_id: str, chosen: "Sequence[Concept]", pending: list[str]) -> None:
    from e2gan_cluster.search.lookup import find_result

    search = batch.config.search
    ranks, sizes = ", ".join(map(str, search.rank_multipliers)), ", ".join(map(str, search.data_sizes))
    typer.echo(f"base {base_id}  {len(pending)} of {len(chosen)} concepts to search  {search.mode} {search.order}")
    typer.echo(f"rank rungs x{ranks}  data rungs {sizes} pairs  {search.train.images} images per training")
    found = [find_result(batch.config, batch.store, base_id, concept) for concept in chosen]
    for concept, result in zip(chosen, found, strict=True):
        state = "search" if concept.name in pending else "done" if result else "no finished pairs"
        typer.echo(f"  {concept.name:<40}{state}")


def _print_results(results: "Mapping[str, ConceptResult]") -> None:
    typer.echo(
        f"{'concept':<32}{'state':<9}{'rank':>5}{'pairs':>7}{'metric':>9}{'base':>9}{'kB':>7}{'trials':>8}{'s':>8}"
    )
    for name, result in results.items():
        if result.state != "done":
            typer.echo(f"{name:<32}{result.state:<9}{result.failure or ''}")
            continue
        base = result.base_metrics.get(result.metric_name)
        numbers = f"{'x' + str(result.rank_multiplier):>5}{result.data_size:>7}{result.metric or 0:>9.4f}"
        numbers += f"{base if base is not None else float('nan'):>9.4f}{result.adapter_bytes / 1000:>7.0f}"
        typer.echo(f"{name:<32}{result.state:<9}{numbers}{result.trials:>8}{result.seconds:>8.0f}")
