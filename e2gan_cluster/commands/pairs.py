"""`e2gan pairs` and `e2gan import-pairs`: photos and their edits, made by the teacher or taken from elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from e2gan_cluster.commands.options import ConfigOption, LogFormatOption, SetOption
from e2gan_cluster.config_io import load_config
from e2gan_cluster.errors import EXIT_NOTHING_DONE, EXIT_OK, EXIT_SOME_FAILED
from e2gan_cluster.progress import make_reporter

if TYPE_CHECKING:
    from e2gan_cluster.batch import Batch
    from e2gan_cluster.concepts import Concept
    from e2gan_cluster.config import RunConfig
    from e2gan_cluster.pairs.ledger import PairsResult

ConceptOption = Annotated[list[str] | None, typer.Option("--concept", help="Only these; may be repeated.")]


def pairs(
    config: ConfigOption,
    settings: SetOption = None,
    concept: ConceptOption = None,
    preview: Annotated[bool, typer.Option("--preview", help="Only a picture of some edits, in seconds.")] = False,
    photos: Annotated[int, typer.Option("--photos", min=1, help="Photos of the preview.")] = 4,
    out: Annotated[Path, typer.Option("--out", help="Where the preview goes.")] = Path("preview.png"),
    verify: Annotated[
        bool | None,
        typer.Option("--verify/--no-verify", help="Read finished shards in full; by default only on a local folder."),
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray; same shards.")] = False,
    log_format: LogFormatOption = "auto",
) -> None:
    """Let the teacher edit the photos for every concept, on Ray Data; the same command again resumes.

    Exit codes: 0 all done, 1 nothing done, 2 bad input, 3 some concepts failed.

    Example: `e2gan pairs --config configs/demo.yaml --concept oil-painting --preview`
    """
    from e2gan_cluster.batch import open_batch, tracking_uri

    run_config = load_config(config, settings or ())
    if preview:
        _preview(run_config, concept, photos, out, log_format)
        return
    from e2gan_cluster.pairs.generate import generate_pairs, run_local
    from e2gan_cluster.track.mlflow_tracker import open_tracker

    batch = open_batch(run_config)
    batch.store.probe()
    chosen = _chosen(batch, concept)
    reporter = make_reporter(log_format)
    tracker = open_tracker(tracking_uri(batch.config), batch.config.name, batch.fingerprint)
    make = run_local if local else generate_pairs
    try:
        results = make(batch.config, batch.store, chosen, reporter, verify=verify, tracker=tracker)
    finally:
        tracker.close()
    _print_results(results)
    failed = sum(result.failure is not None for result in results.values())
    some = EXIT_NOTHING_DONE if failed == len(results) else EXIT_SOME_FAILED
    raise typer.Exit(some if failed else EXIT_OK)


def import_pairs(
    source: Annotated[Path, typer.Argument(help="Folder with input/ and edited/, or Parquet file(s).", exists=True)],
    config: ConfigOption,
    concept: Annotated[str, typer.Option("--concept", help="Whose pairs they are.", show_default=False)],
    settings: SetOption = None,
    only_prompt: Annotated[str | None, typer.Option("--only-prompt", help="Only rows with this edit_prompt.")] = None,
    log_format: LogFormatOption = "auto",
) -> None:
    """Take existing pairs as a concept's pairs: a folder, or a Hugging Face data set's Parquet files.

    Example: `e2gan import-pairs my_pairs/ --config configs/demo.yaml --concept oil-painting`
    """
    from e2gan_cluster.pairs import importer

    batch, (chosen,) = _open_for(load_config(config, settings or ()), [concept])
    result = importer.import_pairs(batch.config, batch.store, chosen, source, make_reporter(log_format), only_prompt)
    _print_results({concept: result})
    raise typer.Exit(EXIT_NOTHING_DONE if result.failure else EXIT_OK)


def _preview(run_config: "RunConfig", names: list[str] | None, photos: int, out: Path, log_format: str) -> None:
    from e2gan_cluster.pairs.preview import preview_png

    batch, chosen = _open_for(run_config, names)
    reporter = make_reporter(log_format)  # pyright: ignore[reportArgumentType]
    out.write_bytes(preview_png(batch.config, batch.store, chosen, reporter, photos))
    typer.echo(f"wrote {out}: {photos} photos, {len(chosen)} concepts")


def _open_for(run_config: "RunConfig", names: list[str] | None) -> "tuple[Batch, list[Concept]]":
    """Without choosing base concepts: any concept of the catalogue may be named."""
    from e2gan_cluster.batch import peek_batch
    from e2gan_cluster.concepts import load_catalogue, select

    batch = peek_batch(run_config)
    if names:
        return batch, select(load_catalogue(run_config.concepts.catalogue), names)
    return batch, batch.concepts


def _chosen(batch: "Batch", names: list[str] | None) -> "list[Concept]":
    from e2gan_cluster.concepts import select

    return select(batch.concepts, names) if names else batch.concepts


def _print_results(results: "Mapping[str, PairsResult]") -> None:
    for name, result in results.items():
        dropped = ", ".join(f"{count} {reason}" for reason, count in result.dropped.items())
        state = f"FAILED: {result.failure}" if result.failure else "ok"
        typer.echo(f"{name:32s} {result.train_ok:6d} train {result.heldout_ok:5d} held-out  {dropped or '-'}  {state}")
