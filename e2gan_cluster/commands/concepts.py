"""`e2gan concepts`: list and check a catalogue."""

from typing import Annotated

import typer

from e2gan_cluster.concepts import load_catalogue


def concepts(
    catalogue: Annotated[str, typer.Argument(help="`bundled`, `composed` or a YAML file.")] = "bundled",
    tag: Annotated[str | None, typer.Option("--tag", help="Only concepts with this tag.", show_default=False)] = None,
) -> None:
    """List the concepts of a catalogue with their prompts; a wrong catalogue is an error with file and line.

    Example: `e2gan concepts configs/concepts/bundled.yaml --tag look`
    """
    found = [c for c in load_catalogue(catalogue) if tag is None or tag in c.tags]
    width = max((len(c.name) for c in found), default=0)
    for concept in found:
        tags = f"  [{', '.join(concept.tags)}]" if concept.tags else ""
        typer.echo(f"{concept.name:{width}}  {concept.prompt}{tags}")
    typer.echo(f"{len(found)} concepts", err=True)
