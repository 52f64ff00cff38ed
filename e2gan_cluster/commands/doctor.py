"""`e2gan doctor`: is everything there that a run needs?"""

import typer

from e2gan_cluster.commands.options import ConfigOption, SetOption
from e2gan_cluster.config_io import load_config
from e2gan_cluster.doctor import run_checks
from e2gan_cluster.errors import EXIT_NOTHING_DONE

_MARKS = {"ok": "ok      ", "warning": "warning ", "failed": "FAILED  "}


def doctor(config: ConfigOption, settings: SetOption = None) -> None:
    """Check packages, concepts, photos, teacher, storage, MLflow, Ray, GPU memory and free disk.

    One line each, with a fix. Exit code 0 if nothing failed, else 1.

    Example: `e2gan doctor --config configs/demo.yaml`
    """
    failed = 0
    for check in run_checks(load_config(config, settings or ())):
        fix = f"  fix: {check.fix}" if check.fix else ""
        typer.echo(f"{_MARKS[check.state]} {check.name:9} {check.detail}{fix}")
        failed += check.state == "failed"
    if failed:
        raise typer.Exit(EXIT_NOTHING_DONE)
