"""`e2gan run | plan | submit | status | stop`: batches of concepts, here or on a cluster."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from e2gan_cluster.commands.options import ConfigOption, LogFormatOption, SetOption
from e2gan_cluster.config_io import load_config
from e2gan_cluster.errors import InputError
from e2gan_cluster.progress import LogFormat, Reporter, make_reporter

if TYPE_CHECKING:
    from e2gan_cluster.batch import Batch
    from e2gan_cluster.cost import Plan
    from e2gan_cluster.stages import Outcome

AddressOption = Annotated[
    str,
    typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", help="Ray dashboard, http://host:8265."),
]


def run(
    config: ConfigOption,
    settings: SetOption = None,
    stage: Annotated[
        list[str] | None,
        typer.Option("--stage", help="Only these: pairs, base, layers, adapt, publish, report; may be repeated."),
    ] = None,
    log_format: LogFormatOption = "auto",
) -> None:
    """Run a batch from photos to published adapters and a report; the same command again resumes.

    Exit codes: 0 all done, 1 nothing done, 2 bad input, 3 some concepts failed.

    Example: `e2gan run --config configs/demo.yaml --stage adapt --stage publish`
    """
    from e2gan_cluster.batch import note_config, open_batch, tracking_uri
    from e2gan_cluster.cost import make_plan
    from e2gan_cluster.stages import STAGES, run_stages
    from e2gan_cluster.status import Heartbeat
    from e2gan_cluster.track.mlflow_tracker import open_tracker

    unknown = sorted(set(stage or ()) - set(STAGES))
    if unknown:
        raise InputError(f"--stage {unknown[0]} is not a stage", f"choose among {', '.join(STAGES)}")
    run_config = load_config(config, settings or ())
    reporter = make_reporter(log_format)
    start = time.monotonic()
    batch = open_batch(run_config)
    batch.store.probe()
    for line in note_config(batch):
        reporter.note(f"changed since the last run: {line}")
    _note_plan(reporter, batch, make_plan(run_config))
    tracker = open_tracker(tracking_uri(batch.config), batch.config.name, batch.fingerprint)
    with Heartbeat(batch, reporter) as heartbeat:
        outcome = run_stages(batch, heartbeat, tracker, [s for s in STAGES if not stage or s in stage])
    tracker.close()
    _print_outcome(batch, outcome, time.monotonic() - start, config, log_format)
    raise typer.Exit(outcome.exit_code)


def plan(config: ConfigOption, settings: SetOption = None) -> None:
    """Say what is done, what will run, and what it takes: images, hours, bytes, money. Needs neither Ray nor a GPU.

    Example: `e2gan plan --config configs/paper.yaml --set costs.machine_per_hour=1.2`
    """
    from e2gan_cluster.cost import make_plan
    from e2gan_cluster.plan_table import print_plan

    print_plan(make_plan(load_config(config, settings or ())))


def submit(
    config: ConfigOption,
    settings: SetOption = None,
    address: AddressOption = "http://127.0.0.1:8265",
    working_dir: Annotated[
        Path, typer.Option(help="Folder with jobs/ and configs/ that goes to the cluster.")
    ] = Path(),
    follow: Annotated[bool, typer.Option(help="Print the job's log until it ends.")] = True,
) -> None:
    """Submit a batch to a Ray cluster. The same batch submitted twice is one job.

    Ends with the exit code of the job: 0 all done, 1 nothing done, 2 bad input, 3 some concepts failed.

    Example: `e2gan submit --config configs/s3.yaml --address http://127.0.0.1:8265`
    """
    from e2gan_cluster import submit as jobs
    from e2gan_cluster.batch import resolve_storage, run_fingerprint
    from e2gan_cluster.cost import make_plan
    from e2gan_cluster.plan_table import plan_line

    run_config = load_config(config, settings or ())
    if not (working_dir / "jobs" / "run_batch.py").exists():
        raise InputError(
            f"{working_dir.resolve()} has no jobs/run_batch.py",
            "run this in the project's folder, or pass --working-dir",
        )
    typer.echo(plan_line(make_plan(run_config)))
    run_config = resolve_storage(run_config)
    client = jobs.connect(address)
    job = jobs.submit(client, run_config, run_fingerprint(run_config), config, settings or (), working_dir)
    typer.echo(f"job {job.job_id} {'submitted' if job.new else 'is there already'}; storage {run_config.storage}")
    if follow:
        raise typer.Exit(jobs.follow(client, job.job_id, lambda text: typer.echo(text, nl=False)))


def status(
    config: ConfigOption,
    settings: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Show one row per concept, read from storage: while the job runs, after it, from any machine.

    Example: `e2gan status --config configs/s3.yaml`
    """
    from e2gan_cluster.batch import peek_batch
    from e2gan_cluster.plan_table import print_status, status_json
    from e2gan_cluster.status import batch_status

    state = batch_status(peek_batch(load_config(config, settings or ())))
    if as_json:
        typer.echo(status_json(state))
    else:
        print_status(state)


def stop(
    config: ConfigOption,
    settings: SetOption = None,
    address: Annotated[str | None, typer.Option("--address", help="Also stop the Ray job at this dashboard.")] = None,
) -> None:
    """Stop a batch cleanly, here or on a cluster; the next run of it resumes.

    Example: `e2gan stop --config configs/s3.yaml --address http://127.0.0.1:8265`
    """
    from e2gan_cluster import submit as jobs
    from e2gan_cluster.batch import peek_batch
    from e2gan_cluster.status import request_stop

    batch = peek_batch(load_config(config, settings or ()))
    request_stop(batch)
    typer.echo("stop requested: the run ends within some seconds")
    if address:
        name = jobs.job_id(batch.config, batch.fingerprint)
        ended = jobs.stop(jobs.connect(address), name)
        typer.echo(f"job {name} {'stopped' if ended else 'was not running'}")


def _note_plan(reporter: Reporter, batch: "Batch", estimate: "Plan") -> None:
    from e2gan_cluster.plan_table import plan_line

    reporter.note(f"batch {batch.config.name} ({batch.fingerprint[:12]}) in {batch.store.url}")
    reporter.note(f"{len(batch.base)} base concepts: {', '.join(concept.name for concept in batch.base)}")
    reporter.note(f"{len(batch.new)} new concepts: {_names(batch)}")
    reporter.note(plan_line(estimate))


def _names(batch: "Batch", most: int = 12) -> str:
    names = [concept.name for concept in batch.new]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _print_outcome(batch: "Batch", outcome: "Outcome", elapsed_s: float, config: Path, log_format: LogFormat) -> None:
    from e2gan_cluster.batch import tracking_uri

    if log_format == "json":
        import json

        record = {"event": "end", "done": outcome.done, "failed": outcome.failed, "base_id": outcome.base_id}
        times = {"elapsed_s": elapsed_s, "outside_s": outcome.outside(elapsed_s)}
        typer.echo(json.dumps({**record, "versions": outcome.versions, **times}))
        return
    typer.echo(f"\n{len(outcome.done)} concepts done, {len(outcome.failed)} failed, {elapsed_s:.0f} s")
    for name, reason in sorted(outcome.failed.items()):
        typer.echo(f"  {name}: {reason}")
    _print_results(batch, outcome)
    _print_times(outcome, elapsed_s)
    typer.echo("\nnext:")
    typer.echo(f"  e2gan status --config {config}")
    typer.echo(f"  e2gan compare --config {config}")
    if outcome.versions:
        name = sorted(outcome.versions)[0]
        typer.echo(f"  e2gan pull --registry {batch.config.storage} --out build/effects {name}")
        typer.echo(f"  e2gan edit --registry {batch.config.storage} --concept {name} --image photo.jpg --out out.png")
    typer.echo(f"  mlflow server --backend-store-uri {tracking_uri(batch.config)}")


def _print_times(outcome: "Outcome", elapsed_s: float) -> None:
    """What the run spent beside edits, training and measuring; nothing where it did none of them."""
    outside = outcome.outside(elapsed_s)
    rest_s = sum(outside.values())
    if not any(record.get("busy_s") for record in outcome.stages.values()):
        return
    parts = ", ".join(
        f"{name} {outside_s:.0f} of {outcome.stages[name]['seconds']:.0f}" if name in outcome.stages else
        f"{name} {outside_s:.0f}"
        for name, outside_s in outside.items()
    )  # fmt: skip
    typer.echo(f"  beside edits, training and measuring: {rest_s / elapsed_s:.0%} of the time ({parts} s)")


def _print_results(batch: "Batch", outcome: "Outcome") -> None:
    from e2gan_cluster.storage import keys

    root = batch.config.storage
    if batch.store.head(keys.REPORT) is not None:
        typer.echo(f"  report   {root}/{keys.REPORT}")
    if batch.store.head(keys.OVERVIEW) is not None:
        typer.echo(f"  picture  {root}/{keys.OVERVIEW}")
    for name, version in sorted(outcome.versions.items())[:8]:
        typer.echo(f"  adapter  {root}/{keys.adapter_version_prefix(name, version)}")
