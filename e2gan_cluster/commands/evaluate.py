"""`e2gan evaluate`: metrics on held-out photos, beside base, unchanged photo and the teacher's own seed noise."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from e2gan_cluster.commands.options import ConfigOption, LogFormatOption, SetOption
from e2gan_cluster.commands.report import print_table
from e2gan_cluster.config_io import load_config
from e2gan_cluster.errors import EXIT_NOTHING_DONE, EXIT_OK, EXIT_SOME_FAILED, InputError
from e2gan_cluster.names import did_you_mean
from e2gan_cluster.progress import make_reporter

if TYPE_CHECKING:
    from e2gan_cluster.batch import Batch
    from e2gan_cluster.concepts import Concept


def evaluate(
    config: ConfigOption,
    settings: SetOption = None,
    concept: Annotated[list[str] | None, typer.Option("--concept", help="Only these; may be repeated.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="l1, psnr, ssim, lpips, kid, fd, direction (these by default), fid, clip_*."),
    ] = None,
    floor: Annotated[bool, typer.Option(help="Also run the teacher with another seed: its own noise.")] = True,
    outputs: Annotated[
        list[str] | None,
        typer.Option("--outputs", metavar="LABEL=DIR", help="Another model's outputs, <source_id>.png per photo."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="Write photos, references and outputs as PNG.")
    ] = None,
    inception: Annotated[
        Path | None, typer.Option("--inception", metavar="FILE", help="TorchScript Inception, for fid.")
    ] = None,
    clip: Annotated[str | None, typer.Option("--clip", help="Folder or hub id of a CLIP model, for clip_*.")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or mps.")] = "cpu",
    log_format: LogFormatOption = "auto",
) -> None:
    """Measure adapters, base, unchanged photos and other models against the teacher, on photos no training saw.

    Exit codes: 0 all measured, 1 none, 2 bad input, 3 some failed.

    Example: `e2gan evaluate --config configs/demo.yaml --concept felt-pen --outputs pix2pix=out/pix2pix`
    """
    from e2gan_cluster.batch import peek_batch
    from e2gan_cluster.evaluate.metrics import DEFAULT_METRICS
    from e2gan_cluster.track.charts import number
    from e2gan_cluster.track.evaluation import EvaluateOptions, evaluate_batch, evaluation_table
    from e2gan_cluster.train.base_driver import base_done

    batch = peek_batch(load_config(config, settings or ()))
    chosen = _chosen(batch, concept)
    options = EvaluateOptions(
        metric or DEFAULT_METRICS, floor, _folders(outputs or []), save, inception, clip, device
    )  # fmt: skip
    base_id = base_done(batch.config, batch.store, batch.base) if batch.base else None
    reporter = make_reporter(log_format)
    if base_id is None:
        reporter.note("this batch has no trained base yet: photos and floor only")
    records, failed = evaluate_batch(batch, base_id, chosen, options, reporter)
    if records:
        print_table(evaluation_table(records, number), numbers_from=2)
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED if records else EXIT_NOTHING_DONE)
    raise typer.Exit(EXIT_OK)


def _chosen(batch: "Batch", names: list[str] | None) -> "list[Concept]":
    """The batch's concepts asked for; new ones without a choice.

    Raises:
        InputError: A name is not in the batch.
    """
    known = {concept.name: concept for concept in batch.concepts}
    for name in names or []:
        if name not in known:
            raise InputError(f"--concept {name} is not in this batch{did_you_mean(name, known)}")
    return [known[name] for name in names] if names else (batch.new or batch.base)


def _folders(outputs: list[str]) -> dict[str, Path]:
    """LABEL=DIR options.

    Raises:
        InputError: One is not LABEL=DIR, or there is no such folder.
    """
    folders = {}
    for text in outputs:
        label, separator, folder = text.partition("=")
        if not (label and separator and Path(folder).is_dir()):
            raise InputError(f"--outputs {text}: not LABEL=DIR with an existing folder")
        folders[label] = Path(folder)
    return folders
