"""`e2gan`: one command for every stage.

A command is one line of `COMMANDS`; its module is imported only when it is called, so ``e2gan --help`` starts quickly.

Example:
    e2gan --help
    e2gan config show --config configs/demo.yaml
"""

import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from e2gan_cluster.errors import EXIT_NOTHING_DONE, UserError
from e2gan_cluster.names import did_you_mean
from e2gan_cluster.redact import redact


@dataclass(frozen=True)
class Entry:
    """One command of the table of contents.

    Attributes:
        target: ``module:attribute`` under `e2gan_cluster.commands`: a function, or a Typer app with sub-commands.
        help: One line for the table of contents.
        panel: Heading it stands under.
    """

    target: str
    help: str
    panel: str


START = "Start here"
STAGES = "Stages, in order"
REGISTRY = "Registry and mobile builds"
COMPARE = "Compare and inspect"
CLUSTER = "Jobs on a cluster"
PANELS = (START, STAGES, COMPARE, REGISTRY, CLUSTER)

# Within its panel, in the order of the table of contents.
COMMANDS: dict[str, Entry] = {
    "doctor": Entry("doctor:doctor", "Check packages, storage, MLflow, Ray, GPU, disk; each with a fix.", START),
    "config": Entry("config:app", "Show the resolved run file, or all options.", START),
    "concepts": Entry("concepts:concepts", "List and check a concept catalogue.", START),
    "plan": Entry("run:plan", "What is left to do, and what it takes.", START),
    "run": Entry("run:run", "The whole chain, or some stages of it; resumes.", START),
    "pairs": Entry("pairs:pairs", "Let the teacher edit the photos, on Ray Data; resumes.", STAGES),
    "import-pairs": Entry("pairs:import_pairs", "Take existing pairs as a concept's pairs.", STAGES),
    "base": Entry("base:base", "Train the base GAN on Ray Train; resumes.", STAGES),
    "layers": Entry("adapt:layers", "Measure what adapting each part of the base is worth.", STAGES),
    "adapt": Entry("adapt:adapt", "Search LoRA rank and data size for new concepts; resumes.", STAGES),
    "report": Entry("report:report", "Write report.html from what storage holds.", COMPARE),
    "compare": Entry("report:compare", "One table across concepts and batches.", COMPARE),
    "evaluate": Entry("evaluate:evaluate", "Metrics on held-out photos, with the teacher's own noise beside.", COMPARE),
    "profile": Entry("base:profile", "Parameters, MACs and latency of the networks.", COMPARE),
    "publish": Entry("registry:publish", "Publish a PEFT folder by hand.", REGISTRY),
    "adapters": Entry("registry:app", "List, compare, promote, roll back published adapters.", REGISTRY),
    "pull": Entry("registry:pull", "Bring verified adapters into an app's build.", REGISTRY),
    "verify": Entry("registry:verify", "Compare a pulled folder with what was published.", REGISTRY),
    "export": Entry("export:export", "Make and check device files of published adapters.", REGISTRY),
    "edit": Entry("export:edit", "Edit a photo with an effect, in ONNX Runtime.", REGISTRY),
    "submit": Entry("run:submit", "Send a batch to a Ray cluster and follow it.", CLUSTER),
    "status": Entry("run:status", "One row per concept, from storage.", CLUSTER),
    "stop": Entry("run:stop", "Stop a batch cleanly; the next run resumes.", CLUSTER),
}


# What a user can mend without knowing the code.
_DISK_TROUBLES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


class LazyGroup(TyperGroup):
    """Lists commands from `COMMANDS`; imports the one that is called. Prints a `UserError` and exits with its code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the table of contents."""
        return sorted(COMMANDS, key=lambda name: PANELS.index(COMMANDS[name].panel))

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """What the table of contents needs to know of a command, without importing it."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        return TyperCommand(cmd_name, help=entry.help, rich_help_panel=entry.panel, callback=lambda: None)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The real command, imported now."""
        name = args[0]
        if name not in COMMANDS:
            ctx.fail(f"no command {name!a}{did_you_mean(name, COMMANDS)}")
        return name, load_command(name), args[1:]

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a `UserError` becomes a message and an exit code."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(redact(f"error: {error}"), err=True)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            if error.errno not in _DISK_TROUBLES:
                raise
            fix = "make room on the disk, correct the permissions, or choose another place; the same command resumes"
            typer.echo(redact(f"error: {error.filename or 'writing'}: {error.strerror}\n  fix: {fix}"), err=True)
            raise typer.Exit(EXIT_NOTHING_DONE) from None


def load_command(name: str) -> TyperCommand | TyperGroup:
    """Import a command of `COMMANDS`."""
    module_name, _, attribute = COMMANDS[name].target.partition(":")
    target = getattr(importlib.import_module(f"e2gan_cluster.commands.{module_name}"), attribute)
    group = target
    if not isinstance(target, typer.Typer):
        group = typer.Typer(add_completion=False, rich_markup_mode="markdown")
        group.command(name)(target)
    command: Any = typer.main.get_command(group)
    command.name = name
    return command


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("e2gan-cluster"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Distil diffusion edits into one small base GAN and a LoRA adapter per effect, on a Ray cluster.

    Exit codes: 0 all done, 1 nothing done, 2 bad usage, config or input, 3 some concepts failed.

    Example: `e2gan run --config configs/demo.yaml`
    """


class Terminated:
    """The handler of SIGTERM: an exception, so that `finally` blocks run and checkpoints are flushed.

    Attributes:
        code: Exit code once the signal has come, 0 before.
    """

    code = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Ends the process by an exception."""
        self.code = 128 + number
        sys.exit(self.code)


def main(args: Sequence[str] | None = None) -> None:
    """Console entry point; ``args`` default to the process's own."""
    # Nothing calls home unless its user says so.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    terminated = Terminated()
    signal.signal(signal.SIGTERM, terminated)
    try:
        app(args)
    except SystemExit:
        if terminated.code:
            # Where the signal meets a call of Ray, Ray raises an exit of its own, with code 1.
            sys.exit(terminated.code)
        raise


if __name__ == "__main__":
    main()
