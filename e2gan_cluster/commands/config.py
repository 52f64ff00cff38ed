"""`e2gan config`: the resolved run file and the table of options."""

from pathlib import Path
from typing import Annotated

import typer

from e2gan_cluster.commands.options import OptionalConfigOption, SetOption
from e2gan_cluster.config_io import config_table, fingerprint, load_config, to_yaml
from e2gan_cluster.errors import InputError

app = typer.Typer(no_args_is_help=True, help="Show the resolved run file, or all options.")


@app.command()
def show(config: OptionalConfigOption = None, settings: SetOption = None) -> None:
    """Print the run file with every default filled in, and its fingerprint.

    Example: `e2gan config show --config configs/demo.yaml --set pairs.resolution=128`
    """
    run = load_config(config, settings or ())
    typer.echo(f"# fingerprint: {fingerprint(run)}\n{to_yaml(run)}", nl=False)


@app.command()
def docs(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the page to this file.", show_default=False)
    ] = None,
) -> None:
    """Print all options as a Markdown page: type, default, meaning, unit and source.

    Example: `e2gan config docs --output docs/config.md`
    """
    if output is None:
        typer.echo(config_table(), nl=False)
    else:
        try:
            output.write_text(config_table(), encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as bad:
            raise InputError(f"{output}: {bad.strerror}", "give a file in a folder that exists") from None
