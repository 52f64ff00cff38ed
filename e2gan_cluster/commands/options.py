"""Options that many commands share.

Example:
    def pairs(config: ConfigOption, settings: SetOption = None, log_format: LogFormatOption = "auto") -> None:
        run_config = load_config(config, settings or ())
        reporter = make_reporter(log_format)
"""

from pathlib import Path
from typing import Annotated

import typer

from e2gan_cluster.progress import LogFormat

ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config", "-c", metavar="FILE", help="Run file in YAML, e.g. configs/demo.yaml.", show_default=False
    ),
]
OptionalConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="Run file in YAML; without it the defaults.", show_default=False
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override one option of the run file; may be repeated.", show_default=False
    ),
]
LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        "--log-format", help="auto: bars on a terminal, else plain lines; json: JSON lines on standard output."
    ),
]
